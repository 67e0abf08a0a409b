//! Rules about README.md and the other documents.

use std::collections::BTreeSet;

/// Returns the names in the help's list of subcommands.
pub(crate) fn subcommands(help: &str) -> BTreeSet<&str> {
    let list = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let rows = list.take_while(|line| line.starts_with(' ')).filter(|line| !line.starts_with("   "));
    rows.filter_map(|row| row.split_whitespace().next()).filter(|name| *name != "help").collect()
}

/// Returns whether the document shows the subcommand: `chatgate serve`, or `cargo run ... -- demo`.
pub(crate) fn names_subcommand(document: &str, name: &str) -> bool {
    [format!("chatgate {name}"), format!("-- {name}")].iter().any(|form| {
        document.match_indices(form.as_str()).any(|(start, _)| {
            !document[start + form.len()..].starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-')
        })
    })
}

/// Returns the slugs in the first column of the table headed `Chatgate-Error`; a row may list several slugs.
pub(crate) fn slugs_of_the_table(document: &str) -> BTreeSet<String> {
    let table = document.lines().skip_while(|line| !line.starts_with("| `Chatgate-Error`"));
    let rows = table.skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Returns the slugs that the code declares in its one table of names, `slugs! { Name = "slug", .. }`.
pub(crate) fn slugs_of_the_code(code: &str) -> BTreeSet<String> {
    let declared =
        code.split_once("\nslugs! {").and_then(|(_, rest)| rest.split_once("\n}")).map_or("", |(body, _)| body);
    declared.lines().filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
}

/// Returns the targets of the document's links into the project: file (empty for the document itself) and anchor (empty
/// for the top of the file).
pub(crate) fn local_links(document: &str) -> Vec<(&str, &str)> {
    let targets = document.match_indices("](").filter_map(|(start, open)| {
        let rest = &document[start + open.len()..];
        rest.split_once(')').map(|(target, _)| target)
    });
    targets
        .filter(|target| !target.contains("://"))
        .map(|target| target.split_once('#').unwrap_or((target, "")))
        .collect()
}

/// Returns the anchors of the document's headings in GitHub's format: lower case, spaces as `-`, without punctuation.
pub(crate) fn anchors(document: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let headings = document.lines().filter(move |line| {
        in_block ^= line.starts_with("```");
        !in_block && line.starts_with('#')
    });
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|sign| sign.is_alphanumeric() || matches!(sign, ' ' | '-' | '_'));
        kept.map(|sign| if sign == ' ' { '-' } else { sign }).collect()
    };
    headings.map(anchor).collect()
}

/// Returns the values of a CSV column. The first line names the columns; no cell before the column may be quoted.
pub(crate) fn column<'a>(table: &'a str, name: &str) -> BTreeSet<&'a str> {
    let mut lines = table.lines();
    let place = lines.next().and_then(|head| head.split(',').position(|cell| cell == name)).expect("such a column");
    lines.filter_map(|line| line.split(',').nth(place)).collect()
}

/// Returns the numbers in the patterns of match arms that name one of the effects: `60006 | 70014 => ...ParkApp...`.
pub(crate) fn codes_with_effect(code: &str, effects: &[&str]) -> BTreeSet<u32> {
    let dense = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let pieces: Vec<&str> = dense.split(" => ").collect();
    let arms = pieces.windows(2).filter(|pair| {
        let body = pair[1].split(['}', ')']).next().unwrap_or_default();
        effects.iter().any(|effect| body.ends_with(effect))
    });
    let patterns = arms.map(|pair| pair[0].rsplit(['{', '}', ',']).next().unwrap_or_default());
    patterns.flat_map(|pattern| pattern.split('|').filter_map(|number| number.trim().parse().ok())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_parsers_return_the_expected_parts() {
        let help = "About\n\nUsage: x\n\nCommands:\n  serve  Runs it\n         on and on\n  demo   Shows it\n  help   Prints\n\nOptions:\n  -h\n";
        assert_eq!(subcommands(help), BTreeSet::from(["serve", "demo"]));
        assert!(names_subcommand("run `chatgate serve`", "serve"));
        assert!(names_subcommand("cargo run -- demo", "demo"));
        assert!(!names_subcommand("chatgate server, chatgate serve-all", "serve"));
        let table = "x\n| `Chatgate-Error` | HTTP |\n| --- | --- |\n| `a_b`, `c` | 1 |\n| `d` | `no` |\n\n| `e` |\n";
        assert_eq!(slugs_of_the_table(table), BTreeSet::from(["a_b", "c", "d"].map(str::to_owned)));
        let code = "x = \"d\";\nslugs! {\n    AB = \"a_b\",\n    C = \"c\",\n}\ny = \"e\"";
        assert_eq!(slugs_of_the_code(code), BTreeSet::from(["a_b", "c"].map(str::to_owned)));
        let links = local_links("[a](LICENSE) [b](https://x.y) [c](#d) [e](F.md#g)");
        assert_eq!(links, [("LICENSE", ""), ("", "d"), ("F.md", "g")]);
        let headings = "# A b, c_d\n```\n# no\n```\n### `x`: Y's\n";
        assert_eq!(anchors(headings), BTreeSet::from(["a-b-c_d", "x-ys"].map(str::to_owned)));
        assert_eq!(column("a,b\n1,x\n2,y,\"z\"\n", "b"), BTreeSet::from(["x", "y"]));
        let code = "match code { 1 | 2 => (N, E::Park),\n3 | 4 => {\n(N, E::Stop)\n}\n5 => (N, E::None), }";
        assert_eq!(codes_with_effect(code, &["Park", "Stop"]), BTreeSet::from([1, 2, 3, 4]));
    }
}
