//! The order of modules: each uses only the modules above it in the map of `src/lib.rs`.

/// Returns the top-level modules in the order of the map, a table whose rows start with links to modules.
pub(crate) fn map_of(lib: &str) -> Vec<&str> {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | [`"));
    let cells = rows.filter_map(|row| row.split(" |").next());
    cells.flat_map(|cell| cell.split("`], [`")).map(|name| name.trim_end_matches("`]")).collect()
}

/// Returns the lines of `module`'s code that name a module below it in `map`.
pub(crate) fn lines_naming_lower_modules(code: &str, module: &str, map: &[&str]) -> Vec<(usize, String)> {
    let Some(own) = map.iter().position(|name| *name == module) else {
        return vec![(1, format!("the map of src/lib.rs does not list {module}"))];
    };
    let mut found = Vec::new();
    for (line, at) in code.lines().zip(1..) {
        for (start, path) in line.match_indices("crate::") {
            let rest = &line[start + path.len()..];
            let name = &rest[..rest.find(|inner: char| !inner.is_alphanumeric() && inner != '_').unwrap_or(rest.len())];
            if map.iter().position(|other| *other == name).is_some_and(|other| other > own) {
                found.push((at, format!("names {name}, which is below {module}")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_lists_modules_in_order() {
        let lib =
            "//! | module | contents |\n//! | --- | --- |\n//! | [`domain`] | x |\n//! | [`a`], [`b_c`] | [`y`] |\n";
        assert_eq!(map_of(lib), ["domain", "a", "b_c"]);
    }

    #[test]
    fn uses_of_lower_modules_are_found() {
        let map = ["domain", "http", "gateway"];
        let code = "use crate::domain::x;\nuse crate::gateway::{a, b};\nlet x = crate::gateway_like::y;\n";
        assert_eq!(
            lines_naming_lower_modules(code, "http", &map),
            [(2, "names gateway, which is below http".to_owned())]
        );
        assert!(lines_naming_lower_modules(code, "gateway", &map).is_empty());
        assert_eq!(lines_naming_lower_modules(code, "new", &map).len(), 1);
    }
}
