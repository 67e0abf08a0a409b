//! Rejected configurations: location, key, and message of each problem.

use super::*;
use crate::config::secret::SECRET_LEN_MAX;

/// Text after a valid app: line (counted from the first line after the app), key, start of the message.
#[rustfmt::skip]
const AFTER_AN_APP: &[(&str, usize, &str, &str)] = &[
    // Listeners.
    ("[server]\nlisten = '0.0.0.0:8700'", 2, "server.listen", "reachable from other machines"),
    ("[server]\nlisten = [\n'127.0.0.1:1',\n'0.0.0.0:2',\n]", 4, "server.listen", "reachable from other machines without"),
    ("[server]\nadmin = '[::]:8701'", 2, "server.admin", "reachable from other machines"),
    ("[server]\nlisten = 'localhost:8700'", 2, "server.listen", "host names are not supported"),
    ("[server]\nlisten = 8700", 2, "server.listen", "must be a string in quotes"),
    ("[server]\nlisten = []", 2, "server.listen", "must have 1 to 16 items"),
    ("[server]\nlisten = ['127.0.0.1:1', 'x']", 2, "server.listen[1]", "not an address"),
    ("[server]\nlisten = ['127.0.0.1:1', '127.0.0.1:1']", 2, "server.listen", "duplicate address"),
    ("[server]\nadmin = '127.0.0.1:8700'", 2, "server.admin", "listen and admin have the same address"),
    ("[server]\nlisten = 'unix:x.sock'", 2, "server.listen", "the path must be absolute"),
    ("[server]\nunix_mode = '0888'", 2, "server.unix_mode", "must be octal digits"),
    ("[server]\nunix_mode = '1777'", 2, "server.unix_mode", "must be octal digits"),
    ("[server]\nunix_mode = 660", 2, "server.unix_mode", "must be octal digits"),
    ("[server]\nhosts = ['a:80']", 2, "server.hosts[0]", "must be a name without a port"),
    ("[server]\nhosts = ['*.internal']", 2, "server.hosts[0]", "not a host name"),
    ("[server]\nhosts = 'a'", 2, "server.hosts", "must be a list in square brackets"),
    // Numbers, each just beyond its bounds.
    ("[server]\nmax_body = '1023B'", 2, "server.max_body", "out of range: \"1023B\"; use a size from \"1KiB\" to \"64MiB\""),
    ("[server]\nmax_body = '65MiB'", 2, "server.max_body", "out of range"),
    ("[server]\nmax_body = '1 meg'", 2, "server.max_body", "not a size"),
    ("[server]\nmax_connections = 0", 2, "server.max_connections", "must be a whole number from 1 to 1000000"),
    ("[server]\nadmin_max_connections = 7", 2, "server.admin_max_connections", "must be a whole number from 8 to 1000000"),
    ("[server]\nmax_connections = 1000001", 2, "server.max_connections", "must be a whole number"),
    ("[server]\nmax_requests = 0", 2, "server.max_requests", "must be a whole number"),
    ("[server]\nmax_requests = '5'", 2, "server.max_requests", "must be a whole number"),
    ("[server]\nmax_buffered = 1023", 2, "server.max_buffered", "out of range"),
    ("[server]\nmax_buffered = '65GiB'", 2, "server.max_buffered", "out of range"),
    ("[server]\nhandshake_timeout = '9ms'", 2, "server.handshake_timeout", "out of range"),
    ("[server]\nhead_timeout = '0s'", 2, "server.head_timeout", "out of range"),
    ("[server]\nbody_timeout = '61m'", 2, "server.body_timeout", "out of range"),
    ("[server]\nwrite_timeout = 30", 2, "server.write_timeout", "not a duration"),
    ("[server]\nidle_timeout = '25h'", 2, "server.idle_timeout", "out of range"),
    ("[server]\ndrain_delay = '61m'", 2, "server.drain_delay", "out of range"),
    ("[server]\ndrain_timeout = '-1s'", 2, "server.drain_timeout", "not a duration"),
    ("[server]\nexplain = 'yes'", 2, "server.explain", "must be true or false"),
    ("[cache]\nttl = '25h'", 2, "cache.ttl", "out of range"),
    ("[cache]\nmax_pairs = 0", 2, "cache.max_pairs", "must be a whole number from 1"),
    ("[cache]\nmax_pairs = 100000001", 2, "cache.max_pairs", "must be a whole number"),
    ("[cache]\nmax_pairs = 1e3", 2, "cache.max_pairs", "must be a whole number"),
    ("[cache]\nwrite_settle = '301s'", 2, "cache.write_settle", "out of range"),
    ("[relation]\nmax_to = 0", 2, "relation.max_to", "must be a whole number from 1 to 10000"),
    ("[relation]\nmax_to = 10001", 2, "relation.max_to", "must be a whole number"),
    ("[relation]\ncall_max = 1001", 2, "relation.call_max", "must be a whole number from 1 to 1000"),
    ("[relation]\nkinds = [\"follow\", \"friends\"]", 2, "relation.kinds[1]", "must be one of \"follow\", \"friend\", \"blacklist\""),
    ("[relation]\nkinds = [\"follow\", \"friend\", \"follow\"]", 2, "relation.kinds", "\"follow\" is listed twice"),
    ("[follow_check]\nmax_to = 5\n[relation]\nflip = true", 1, "follow_check", "the former name of [relation]; move its keys there"),
    ("[cache]\nmax_bytes = '1023KiB'", 2, "cache.max_bytes", "out of range"),
    ("[cache]\nmax_bytes = '65GiB'", 2, "cache.max_bytes", "out of range"),
    ("[cache]\ncommands = ['profile/portrait_get']", 2, "cache.commands", "allowed only once"),
    ("[cache.commands]\n'profile/portrait_get' = '0s'", 2, "cache.commands.\"profile/portrait_get\"", "out of range"),
    ("[cache.commands]\n'profile/portrait_get' = 10", 2, "cache.commands.\"profile/portrait_get\"", "not a duration"),
    ("[cache.commands]\n'profile' = '1s'", 2, "cache.commands.\"profile\"", "not a command"),
    ("[cache.commands]\n'profile/*' = '1s'", 2, "cache.commands.\"profile/*\"", "patterns are not allowed"),
    ("[cache.commands]\n'*' = '1s'", 2, "cache.commands.\"*\"", "patterns are not allowed"),
    ("[cache.commands]\n'profile/portrait_set' = '1s'", 2, "cache.commands.\"profile/portrait_set\"", "must not be cached: it is a write; remove it"),
    ("[cache.commands]\n'sns/friend_get' = '1s'", 2, "cache.commands.\"sns/friend_get\"", "must not be cached: its response is one page of a list; remove it"),
    ("[cache.commands]\n'recentcontact/get_list' = '1s'", 2, "cache.commands.\"recentcontact/get_list\"", "must not be cached: its response is a page that changes with every message"),
    ("[cache.commands]\n'follow/follow_check' = '1s'", 2, "cache.commands.\"follow/follow_check\"", "must not be cached: [relation] caches its pairs; remove it"),
    ("[upstream]\ntimeout = '9ms'", 2, "upstream.timeout", "out of range"),
    ("[upstream]\ntimeout = '301s'", 2, "upstream.timeout", "out of range"),
    ("[upstream]\nattempt_timeout = '6s'", 2, "upstream.attempt_timeout", "exceeds upstream.timeout: \"6s\"; use at most 5s"),
    ("[upstream]\nconnect_timeout = '4s'", 2, "upstream.connect_timeout", "exceeds upstream.attempt_timeout: \"4s\"; use at most 3500ms"),
    ("[upstream]\nmax_answer = '1'", 2, "upstream.max_answer", "out of range"),
    ("[upstream]\nmax_in_flight = 10001", 2, "upstream.max_in_flight", "must be a whole number"),
    ("[upstream]\nconnection_max_age = '99ms'", 2, "upstream.connection_max_age", "out of range"),
    ("[upstream]\nidle_timeout = '2h'", 2, "upstream.idle_timeout", "out of range"),
    // The proxy.
    ("[upstream]\nproxy = 'proxy:3128'", 2, "upstream.proxy", "not a proxy: \"proxy:3128\"; use \"http://HOST:PORT\""),
    ("[upstream]\nproxy = 'ftp://proxy:3128'", 2, "upstream.proxy", "not a proxy"),
    ("[upstream]\nproxy = 'http://:3128'", 2, "upstream.proxy", "not a proxy"),
    ("[upstream]\nproxy = 'http://a b:3128'", 2, "upstream.proxy", "not a proxy"),
    ("[upstream]\nproxy = 'http://proxy:0'", 2, "upstream.proxy", "not a proxy"),
    ("[upstream]\nproxy = ''", 2, "upstream.proxy", "must not be empty"),
    ("[upstream]\nproxy = 3128", 2, "upstream.proxy", "must be a string in quotes"),
    ("[upstream]\nproxy = 'http://proxy'", 2, "upstream.proxy", "must have a port"),
    ("[upstream]\nproxy = 'http://proxy:3128/x'", 2, "upstream.proxy", "must have only scheme, host, and port"),
    ("[upstream]\nproxy = 'http://proxy:3128?x'", 2, "upstream.proxy", "must have only scheme, host, and port"),
    ("[upstream]\nproxy = 'http://me:pass@proxy:3128'", 2, "upstream.proxy", "must not contain credentials: \"http://...@proxy:3128\"; put USER:PASSWORD into a file"),
    ("[upstream]\nproxy = 'https://me:pass@proxy:3128'", 2, "upstream.proxy", "must not contain credentials"),
    ("[upstream]\nproxy = 'https://proxy:3128'", 2, "upstream.proxy", "TLS to the proxy is not supported"),
    ("[upstream]\nproxy = 'socks5://proxy:1080'", 2, "upstream.proxy", "not supported: \"socks5://proxy:1080\"; use \"socks5h://HOST:PORT\""),
    ("[upstream]\nproxy = 'http://proxy:3128'\nproxy_auth = 'me:pass'", 3, "upstream.proxy_auth", "secrets are not allowed here"),
    ("[upstream]\nproxy = 'http://proxy:3128'\nproxy_auth_file = 'a'", 3, "upstream.proxy_auth_file", "cannot read the file (no such file)"),
    ("[upstream]\nproxy = 'http://proxy:3128'\nproxy_auth_env = 'A'", 3, "upstream.proxy_auth_env", "the environment variable is not set"),
    ("[upstream]\nproxy = 'http://proxy:3128'\nproxy_auth_file = 'chat-key'", 3, "upstream.proxy_auth_file", "not credentials: \"chat-key\"; write one line USER:PASSWORD"),
    ("[upstream]\nproxy = 'http://proxy:3128'\nno_proxy = '*'", 3, "upstream.no_proxy", "must be a list in square brackets"),
    ("[upstream]\nproxy = 'http://proxy:3128'\nno_proxy = ['.a', '10.0.0.0/33']", 3, "upstream.no_proxy[1]", "not a host: \"10.0.0.0/33\"; use a name"),
    ("[upstream]\nno_proxy = ['.a']", 2, "upstream.no_proxy", "requires proxy; set upstream.proxy, or remove this key"),
    ("[upstream]\nproxy_auth_file = 'proxy-auth'", 2, "upstream.proxy_auth_file", "requires proxy; set upstream.proxy, or remove this key"),
    ("[upstream]\nproxi = 1", 2, "upstream.proxi", "unknown key; did you mean \"proxy\"?"),
    // Words.
    ("[log]\nrequests = true", 2, "log.requests", "must be \"sampled\", \"all\", or \"off\""),
    ("[log]\nlevel = 'INFO'", 2, "log.level", "must be \"error\", \"warn\""),
    ("[log]\nformat = 'xml'", 2, "log.format", "must be \"json\" or \"text\""),
    ("[access]\nallow = ['follow']", 2, "access.allow[0]", "is not a pattern: \"follow\"; use \"*\""),
    ("[access]\nallow = [\n'follow/*',\n'*/x']", 4, "access.allow[1]", "is not a pattern"),
    ("[access]\nallow = 'follow/*'", 2, "access.allow", "must be a list in square brackets"),
    ("[access]\nopen = 1", 2, "access.open", "must be true or false"),
    // Unknown keys, at each depth.
    ("[servre]", 1, "servre", "unknown key; did you mean \"server\"?"),
    ("[server]\n\nlisten_address = 'x'", 3, "server.listen_address", "unknown key; valid keys: listen, admin"),
    ("[server]\nmax-body = '1MiB'", 2, "server.max-body", "unknown key; did you mean \"max_body\"?"),
    ("[app.quota]\nper_comand = '1/s'", 2, "app[0].quota.per_comand", "unknown key; did you mean \"per_command\"?"),
    ("[server.tls]\ncert_fil = 'x'", 2, "server.tls.cert_fil", "unknown key; did you mean \"cert_file\"?"),
    ("[access]\nalow = []", 2, "access.alow", "unknown key; did you mean \"allow\"?"),
    ("[cache]\nTTL = '1s'", 2, "cache.TTL", "unknown key"),
    ("[relation]\nmax_too = 1", 2, "relation.max_too", "unknown key; did you mean \"max_to\"?"),
    ("[upstream]\ntimeouts = '1s'", 2, "upstream.timeouts", "unknown key; did you mean \"timeout\"?"),
    ("[log]\ncolour = true", 2, "log.colour", "unknown key; valid keys: format, level, requests"),
    // Shapes.
    ("[[server]]", 1, "server", "allowed only once; use [server]"),
    ("[[log]]\nlevel = 'info'", 1, "log", "allowed only once; use [log]"),
    // The quota.
    ("[app.quota]\nper_command = '0/s'", 2, "app[0].quota.per_command", "not a rate"),
    ("[app.quota]\nper_command = 200", 2, "app[0].quota.per_command", "not a rate"),
    ("[app.quota]\nreserve = '0/s'", 2, "app[0].quota.reserve", "not a rate"),
    ("[app.quota]\nreserve = '200/s'", 2, "app[0].quota.reserve", "leaves nothing to callers of class \"batch\""),
    ("[app.quota]\ntotal = '0/s'", 2, "app[0].quota.total", "not a rate"),
    ("[app.quota]\ntotal = '10000001/s'", 2, "app[0].quota.total", "not a rate"),
    ("[app.quota.commands]\n'follow/follow_add' = '0/s'", 2, "app[0].quota.commands.\"follow/follow_add\"", "not a rate"),
    ("[app.quota.commands]\n'follow/*' = '1/s'", 2, "app[0].quota.commands.\"follow/*\"", "not a command"),
    // Webhooks.
    ("[webhook]\nlisten = '0.0.0.0:8702'", 1, "webhook.app_tokens", "missing; set app_tokens = { main ="),
    ("[webhook]\nlisten = '0.0.0.0:8702'\napp_tokens = {}", 3, "webhook.app_tokens", "empty; set app_tokens"),
    ("[webhook]\napp_tokens = { main = { file = 'chat-key' } }", 1, "webhook.listen", "missing; set listen = \"0.0.0.0:8702\""),
    ("[webhook]\nlisten = '127.0.0.1:8700'\napp_tokens = { main = { file = 'chat-key' } }", 2, "webhook.listen", "another listener has this address"),
    ("[webhook]\nlisten = '127.0.0.1:8701'\napp_tokens = { main = { file = 'chat-key' } }", 2, "webhook.listen", "another listener has this address"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nwindow = '61m'", 4, "webhook.window", "out of range: \"61m\"; use a duration from \"1s\" to \"1h\""),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { token = 'x' } }", 3, "webhook.app_tokens.\"main\".token", "secrets are not allowed here"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { } }", 3, "webhook.app_tokens.\"main\".file", "missing; set file = \"FILE\" or env = \"VARIABLE\""),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { other = { file = 'chat-key' } }", 3, "webhook.app_tokens.\"other\"", "unknown app"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nwindw = '1s'", 4, "webhook.windw", "unknown key; did you mean \"window\"?"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nforward = { mian = 'http://a/' }", 4, "webhook.forward.\"mian\"", "unknown app"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nforward = { main = 'a:80/im' }", 4, "webhook.forward.\"main\"", "not the URL of an app; use \"http://HOST:PORT/PATH\""),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nforward = { main = 'http://u:p@a/' }", 4, "webhook.forward.\"main\"", "must have no user name, query, or fragment"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nforward = { main = 'http://127.0.0.1:1/' }", 4, "webhook.forward.\"main\"", "this is a listener of chatgate itself"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nforward = { main = 'http://localhost:8700/' }", 4, "webhook.forward.\"main\"", "this is a listener of chatgate itself"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nforward = 'http://a/'", 4, "webhook.forward", "must be a table"),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nforward_timeout = '2001ms'", 4, "webhook.forward_timeout", "out of range: \"2001ms\"; use a duration from \"10ms\" to \"2s\""),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\n[webhook.tls]\nkey_file = 'b'", 4, "webhook.tls.cert_file", "missing; set cert_file = \"FILE\""),
    ("[[app]]\nname = 'two'\nsdkappid = 2\nregion = 'tokyo'\nsecret_key_file = 'chat-key'\n[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { main = { file = 'chat-key' } }\nforward = { two = 'http://a/' }", 9, "webhook.forward.\"two\"", "no webhook of this app is accepted; add its token"),
    // TLS.
    ("[server.tls]\nkey_file = 'b'", 1, "server.tls.cert_file", "missing; set cert_file = \"FILE\""),
    ("[server]\ntls = { cert_file = 'a', key_file = 'b' }", 2, "server.tls.cert_file", "cannot read the file (no such file)"),
    ("[server]\ntls = { cert_file = 'a', key_file = 'chat-key' }", 2, "server.tls.key_file", "no private key in the file"),
    ("[server]\ntls = true", 2, "server.tls", "must be a table"),
    // Tokens, users, the fleet, and traces.
    ("[server]\nadmin_token_file = 'a'", 2, "server.admin_token_file", "cannot read the file"),
    ("[server]\nadmin_token = 'a'", 2, "server.admin_token", "secrets are not allowed here"),
    ("[server]\nunix_uids = []", 2, "server.unix_uids", "must have 1 to 100 items"),
    ("[server]\nunix_uids = [1, -1]", 2, "server.unix_uids[1]", "must be a numeric user ID"),
    ("[fleet]\nshare = 0.5", 1, "fleet.redis", "missing; set redis = \"redis://HOST:PORT\""),
    ("[fleet]\nredis = 'redis://x'\nprefix = 'a b'", 3, "fleet.prefix", "must be 1 to 64 characters"),
    ("[fleet]\nredis = 'redis://x'\nprefix = ''", 3, "fleet.prefix", "must not be empty"),
    ("[fleet]\nurl = 'redis://:p@x'", 2, "fleet.url", "secrets are not allowed here"),
    ("[trace]\nsample = 0.5", 1, "trace.otlp", "missing; set otlp = \"http://HOST:4318\""),
    ("[trace]\notlp = '127.0.0.1:4318'", 2, "trace.otlp", "not the URL of an OTLP receiver"),
    ("[trace]\notlp = 'grpc://x:4317'", 2, "trace.otlp", "not the URL of an OTLP receiver"),
    ("[trace]\notlp = 'http:///v1/traces'", 2, "trace.otlp", "not the URL of an OTLP receiver"),
    ("[trace]\notlp = 'http://x:4318/a?b=c'", 2, "trace.otlp", "must be only"),
    ("[trace]\notlp = 'http://x:4318?b=c'", 2, "trace.otlp", "must be only"),
    ("[trace]\notlp = 'http://x:4318/a#b'", 2, "trace.otlp", "must be only"),
    ("[trace]\notlp = 'http://me:secret@x:4318'", 2, "trace.otlp", "must be only"),
    ("[trace]\notlp = 'http://x:4318/a b'", 2, "trace.otlp", "the path is not valid"),
    ("[trace]\notlp = 'http://x:4318'\nsample = 1.5", 3, "trace.sample", "must be a number from 0 to 1"),
    ("[trace]\notlp = 'https://x:4318'\nca_file = 'a'", 3, "trace.ca_file", "cannot read the file"),
    ("[trace]\notlp = 'http://x:4318'\nratio = 1", 3, "trace.ratio", "unknown key"),
];

#[test]
fn each_problem_names_line_key_and_cause() {
    let before = APP.lines().count();
    for (text, line, key, message) in AFTER_AN_APP {
        let problems = Folder::with(&format!("{APP}{text}\n")).problems(&[]);
        let expected = format!("config.toml:{}: {key}: {message}", before + line);
        assert!(problems.iter().any(|problem| problem.starts_with(&expected)), "{expected}\n{problems:#?}");
        // Missing keys and unreadable files of the same section are reported too.
        let most = if text.contains("tls") { 4 } else { 1 };
        assert!(problems.len() <= most, "{text}\n{problems:#?}");
    }
}

/// Text of a whole file: line, key, start of the message.
#[rustfmt::skip]
const WHOLE: &[(&str, usize, &str, &str)] = &[
    ("app = 1", 1, "app", "must be an array of tables; write [[app]]"),
    ("[app]\nname = 'main'", 1, "app", "must be an array of tables; write [[app]]"),
    ("app = [1]", 1, "app", "must be an array of tables"),
    ("\n[[app]]", 2, "app[0].name", "missing; set name = \"main\""),
    ("[[app]]", 1, "app[0].sdkappid", "missing"),
    ("[[app]]", 1, "app[0].region", "missing; set region = \"china\" or \"singapore\""),
    ("[[app]]", 1, "app[0].secret_key_file", "missing; set secret_key_file = \"FILE\" or secret_key_env = \"VARIABLE\""),
    ("[[app]]\nname = 'Main'", 2, "app[0].name", "may contain only a-z, 0-9, and '-'"),
    ("[[app]]\nname = ''", 2, "app[0].name", "is empty"),
    ("[[app]]\nname = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'", 2, "app[0].name", "is longer than 32 bytes"),
    ("[[app]]\nsdkappid = 0", 2, "app[0].sdkappid", "must be a whole number from 1 to 4294967295"),
    ("[[app]]\nsdkappid = 4294967296", 2, "app[0].sdkappid", "must be a whole number"),
    ("[[app]]\nsdkappid = 99999999999999999999", 2, "app[0].sdkappid", "must be a whole number"),
    ("[[app]]\nsdkappid = '1'", 2, "app[0].sdkappid", "must be a whole number"),
    ("[[app]]\nregion = 'mars'", 2, "app[0].region", "unknown region"),
    ("[[app]]\nendpoint = 'http://example.com'", 2, "app[0].endpoint", "plain HTTP would expose the signature"),
    ("[[app]]\nendpoint = 'https://example.com/v4'", 2, "app[0].endpoint", "must have only scheme, host, and port"),
    ("[[app]]\nendpoint = 'example.com'", 2, "app[0].endpoint", "not an endpoint"),
    ("[[app]]\nidentifier = ''", 2, "app[0].identifier", "is empty"),
    ("[[app]]\nidentifier = \"a\\nb\"", 2, "app[0].identifier", "contains a control character"),
    ("[[app]]\nca_file = 'none.pem'", 2, "app[0].ca_file", "cannot read the file (no such file)"),
    ("[[app]]\nca_file = 'chat-key'", 2, "app[0].ca_file", "no certificate in the file"),
    ("[[app]]\nsecret_key_file = 'none'", 2, "app[0].secret_key_file", "cannot read the file (no such file)"),
    ("[[app]]\nsecret_key_file = '.'", 2, "app[0].secret_key_file", "not a regular file"),
    ("[[app]]\nsecret_key_file = 'empty'", 2, "app[0].secret_key_file", "the secret is empty"),
    ("[[app]]\nsecret_key_file = 'two-lines'", 2, "app[0].secret_key_file", "the secret has more than one line"),
    ("[[app]]\nsecret_key_file = 'large'", 2, "app[0].secret_key_file", "the secret is longer than 64 KiB"),
    ("[[app]]\nsecret_key_file = ''", 2, "app[0].secret_key_file", "must not be empty"),
    ("[[app]]\nsecret_key_env = 'MISSING'", 2, "app[0].secret_key_env", "the environment variable is not set"),
    ("[[app]]\nsecret_key_env = 'EMPTY'", 2, "app[0].secret_key_env", "the secret is empty"),
    ("[[app]]\nsecret_key_file = 'chat-key'\nsecret_key_env = 'KEY'", 3, "app[0].secret_key_env", "conflicts with secret_key_file"),
    ("[[app]]\nsecret_key = 'x'", 2, "app[0].secret_key", "secrets are not allowed here; put the secret into a file"),
    ("[[app]]\nsecret_key_file = '0123456789abcdef0123456789abcdef'", 2, "app[0].secret_key_file", "cannot read the file (no such file): \"...\"; check its path and permissions; set the name of a file or of a variable"),
    ("[[app]]\nusersig_lifetime = '9s'", 2, "app[0].usersig_lifetime", "out of range: \"9s\"; use a duration from \"10s\" to \"4320h\""),
    ("[[app]]\nusersig_lifetime = '4321h'", 2, "app[0].usersig_lifetime", "out of range"),
    ("[[app]]\nusersig_lifetime = '10500ms'", 2, "app[0].usersig_lifetime", "must be whole seconds"),
    ("[[app]]\ndefault = 'true'", 2, "app[0].default", "must be true or false"),
    ("[[app]]\nreads = 'a/b'", 2, "app[0].reads", "must be a list in square brackets"),
    ("[[app]]\nreads = ['a/b', 'a/*']", 2, "app[0].reads[1]", "not a command: \"a/*\"; use \"service/command\""),
    ("[[app]]\nreads = ['follow/follow_add']", 2, "app[0].reads[0]", "Chat documents it as a write"),
    ("[[app]]\nreads = ['a/b', 'a/b']", 2, "app[0].reads", "duplicate command: \"a/b\"; remove one"),
    ("[[app]]\nquota = '5/s'", 2, "app[0].quota", "must be a table; write [app[0].quota]"),
    ("[[app]]\nnmae = 'main'", 2, "app[0].nmae", "unknown key; did you mean \"name\"?"),
    ("[[app]]\n[[app]]\nname = 'a'\n[[app]]\nname = 'a'", 5, "app[2].name", "another app has this name (line 3)"),
    ("[[app]]\nsdkappid = 7\n[[app]]\nsdkappid = 7", 4, "app[1].sdkappid", "another app has this sdkappid (line 2)"),
    ("[[app]]\ndefault = true\n[[app]]\ndefault = true", 4, "app[1].default", "another app is the default (line 2)"),
    ("[[caller]]\nname = 'a'\n[[caller]]\nname = 'a'", 4, "caller[1].name", "another caller has this name (line 2)"),
    ("[[app]]\nname = 'a'\n[[caller]]\napps = ['a', 'b']", 4, "caller[0].apps[1]", "unknown app"),
    ("[[caller]]\nallow = ['follow']", 2, "caller[0].allow[0]", "is not a pattern"),
    ("[[caller]]\nclass = 'bulk'", 2, "caller[0].class", "must be \"interactive\" or \"batch\""),
    ("[[caller]]\nquota = '0/s'", 2, "caller[0].quota", "not a rate"),
    ("[[caller]]\ntoken = 'x'", 2, "caller[0].token", "secrets are not allowed here"),
    ("[[caller]]\ntoken_file = 'none'", 2, "caller[0].token_file", "cannot read the file"),
    ("[[caller]]\ntoken_env = ['KEY', 12345]", 2, "caller[0].token_env[1]", "must be a string in quotes"),
    ("[[caller]]\ntoken_file = []", 2, "caller[0].token_file", "must have 1 to 4 items"),
    ("[[caller]]\ntoken_file = ['a', 'b', 'c', 'd', 'e']", 2, "caller[0].token_file", "must have 1 to 4 items"),
    ("[[caller]]\ntoken_env = ['KEY', 'MISSING']", 2, "caller[0].token_env", "the environment variable is not set"),
    ("[[caller]]\ntoken_file = ['empty']\ntoken_env = 'KEY'", 3, "caller[0].token_env", "conflicts with token_file"),
    ("[[caller]]", 1, "caller[0].token_file", "missing; set token_file = \"FILE\", usersig_key_file, certificates, or unix_uids"),
    ("[[caller]]\nusersig_key = 'x'", 2, "caller[0].usersig_key", "secrets are not allowed here"),
    ("[[caller]]\nusersig_key_file = 'none'", 2, "caller[0].usersig_key_file", "cannot read the file"),
    ("[[caller]]\nusersig_key_file = 'two-lines'", 2, "caller[0].usersig_key_file", "the secret has more than one line"),
    ("[[caller]]\ncertificates = ['a.test']", 2, "caller[0].certificates", "no client shows a certificate; set server.tls.client_ca_file"),
    ("[[caller]]\ncertificates = ['*.test']", 2, "caller[0].certificates[0]", "patterns are not supported"),
    ("[[caller]]\ncertificates = ['a b']", 2, "caller[0].certificates[0]", "not a name in a certificate"),
    ("[[caller]]\ncertificates = 'a.test'", 2, "caller[0].certificates", "must be a list"),
    ("[[caller]]\ncertificates = ['a.test', 'b.test']\n[[caller]]\ncertificates = [\n'c.test',\n'B.test']", 6, "caller[1].certificates", "another caller has this name (line 2)"),
    ("[[caller]]\nunix_uids = []", 2, "caller[0].unix_uids", "must have 1 to 100 items"),
    ("[[caller]]\nunix_uids = ['feed']", 2, "caller[0].unix_uids[0]", "must be a numeric user ID"),
    ("[[caller]]\nunix_uids = [7]\n[[caller]]\nunix_uids = [8, 7]", 4, "caller[1].unix_uids", "another caller has this user (line 2)"),
    ("[[caller]]", 1, "caller[0].name", "missing"),
    ("[[caller]]\nname = 'A'", 2, "caller[0].name", "may contain only a-z, 0-9, and '-'"),
    ("[[caller]]\napps = []", 2, "caller[0].apps", "must have 1 to 256 items"),
    ("[[caller]]\nreport_only = 1", 2, "caller[0].report_only", "must be true or false"),
    ("[webhook]\nwindow = '0s'", 2, "webhook.window", "out of range"),
    ("[webhook]\napp_tokens = { main = 'x' }", 2, "webhook.app_tokens.\"main\"", "must be a table that names the token"),
    ("[webhook]\napp_tokens = { main = { file = 'none' } }", 2, "webhook.app_tokens.\"main\".file", "cannot read the file"),
    ("[webhook]\napp_tokens = { main = { file = 'chat-key' } }", 2, "webhook.app_tokens.\"main\"", "unknown app"),
    ("[fleet]\nredis = 'http://x'", 2, "fleet.redis", "not a Redis URL"),
    ("[fleet]\nredis = 'redis://:p@x'", 2, "fleet.redis", "must not contain a password"),
    ("[fleet]\nredis = []", 2, "fleet.redis", "must have 1 to 16 items"),
    ("[fleet]\nredis = ['redis://a', 'rediss://b']", 2, "fleet.redis", "must have one scheme for all"),
    ("[fleet]\nredis = ['redis://a/2']", 2, "fleet.redis[0]", "must be only \"redis://HOST:PORT\" in a list"),
    ("[fleet]\nredis = 'redis://a'\nsentinels = ['redis://b']\nmaster = 'm'", 3, "fleet.sentinels", "conflicts with redis"),
    ("[fleet]\nsentinels = ['redis://b']", 1, "fleet.master", "missing; set master"),
    ("[fleet]\nredis = 'redis://a'\nmaster = 'm'", 3, "fleet.master", "requires sentinels"),
    ("[fleet]\nsentinels = ['redis://b']\nmaster = 'a b'", 3, "fleet.master", "must be 1 to 128 visible"),
    ("[fleet]\nredis = 'redis://a'\nusername = 'u'", 3, "fleet.username", "requires a password"),
    ("[fleet]\nredis = 'redis://a'\npassword = 'p'", 3, "fleet.password", "secrets are not allowed here"),
    ("[fleet]\nshare = 2", 2, "fleet.share", "must be a number from 0.01 to 1"),
    ("[server.tls]", 1, "server.tls.cert_file", "missing"),
    ("[app.0]", 1, "app", "must be an array of tables"),
    ("x = [[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]", 1, "", "nested too deeply"),
];

#[test]
fn each_problem_of_a_whole_file_names_line_key_and_cause() {
    for (text, line, key, message) in WHOLE {
        let folder = Folder::with(text);
        folder.secret("empty", "\n");
        folder.secret("two-lines", "a\nb\n");
        folder.secret("large", &"k".repeat(SECRET_LEN_MAX + 1));
        let problems = folder.problems(&[("EMPTY", ""), ("KEY", "k")]);
        let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
        let expected = format!("config.toml:{line}: {key}{message}");
        assert!(problems.iter().any(|problem| problem.starts_with(&expected)), "{expected}\n{problems:#?}");
    }
}

#[test]
fn all_problems_are_reported_in_file_order() {
    let text = "colour = 1\n[server]\nlisten = 'x'\nmax_body = 0\nnmae = 1\n[[app]]\nname = 'A'\nsecret_key = 'x'\n\
                [app.quota]\nper_command = '0/s'\n[log]\nlevel = 1\n[trace]\n";
    let problems = Folder::with(text).problems(&[("CHATGATE__CACHE__TTL", "x")]);
    let places: Vec<String> =
        problems.iter().map(|problem| problem.split(": ").take(2).collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "config.toml:1 colour",
        "config.toml:3 server.listen",
        "config.toml:4 server.max_body",
        "config.toml:5 server.nmae",
        "config.toml:6 app[0].sdkappid",
        "config.toml:6 app[0].region",
        "config.toml:7 app[0].name",
        "config.toml:8 app[0].secret_key",
        "config.toml:10 app[0].quota.per_command",
        "config.toml:12 log.level",
        "config.toml:13 trace.otlp",
        "CHATGATE__CACHE__TTL cache.ttl",
    ];
    assert_eq!(places, expected, "{problems:#?}");
}

#[test]
fn configuration_without_an_app_is_rejected() {
    for (text, place) in [("", "config.toml"), ("app = []\n", "config.toml:1")] {
        let problems = Folder::with(text).problems(&[]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(&format!("{place}: app: missing; add an [[app]]")), "{problems:?}");
    }
}

#[test]
fn open_listeners_are_accepted_with_access_open() {
    let text = format!("{APP}[server]\nlisten = '0.0.0.0:8700'\nadmin = '0.0.0.0:8701'\n");
    assert_eq!(Folder::with(&text).problems(&[]).len(), 2);
    assert!(Folder::with(&format!("{text}[access]\nopen = true\n")).load(&[]).is_ok());
    let text = format!("{APP}[server]\nlisten = ['127.0.0.1:0', '127.0.0.1:0', 'unix:/x']\nadmin = '127.0.0.1:0'\n");
    assert!(Folder::with(&text).load(&[]).is_ok());
}

#[test]
fn authenticated_listeners_may_be_open_to_other_machines() {
    let open = |data: &str, admin: &str, more: &str| {
        let folder = Folder::with(&format!("{APP}[server]\nlisten = '{data}'\nadmin = '{admin}'\n{more}"));
        folder.secret("token", "a-token-of-a-caller");
        folder.load(&[]).map(|config| config.warnings.len()).map_err(|problems| problems.all().len())
    };
    let (here, there) = ("127.0.0.1:0", "0.0.0.0:0");
    let caller = "[[caller]]\nname = 'a'\ntoken_file = 'token'\n";
    let admin_token = "admin_token_file = 'token'\n";
    assert_eq!(open(there, there, caller), Ok(0));
    assert_eq!(open(here, there, admin_token), Ok(0));
    assert_eq!(open(there, there, admin_token), Err(1), "the admin token does not protect the data listener");
    assert_eq!(open(there, here, "[access]\nopen = true\n"), Ok(1), "with a warning");
    assert_eq!(open(here, there, "[access]\nopen = true\n"), Ok(0));
}

#[test]
fn tokens_of_callers_and_operators_are_unique() {
    let callers = "[[caller]]\nname = 'a'\ntoken_file = 'one'\n[[caller]]\nname = 'b'\ntoken_env = 'TWO'\n";
    let folder = Folder::with(&format!("{APP}[server]\nadmin_token_file = 'three'\n{callers}"));
    let problems = |one: &str, two: &str, three: &str| {
        folder.secret("one", one);
        folder.secret("three", three);
        match folder.load(&[("TWO", two)]) {
            Ok(_) => Vec::new(),
            Err(_) => folder.problems(&[("TWO", two)]),
        }
    };
    assert_eq!(problems("first-token-of-all", "second-token-of-all", "third-token-of-all"), [""; 0]);
    let same = problems("first-token-of-all\n", "first-token-of-all", "third-token-of-all");
    assert_eq!(same.len(), 1, "{same:?}");
    let expected = "config.toml:13: caller[1].token_env: another caller has this token (line 10): \"TWO\"; create";
    assert!(same[0].starts_with(expected), "{same:?}");
    let same = problems("first-token-of-all", "second-token-of-all", "second-token-of-all");
    let expected = "config.toml:7: server.admin_token_file: a caller has the same token";
    assert!(same.len() == 1 && same[0].starts_with(expected), "{same:?}");
    let same = problems("first-token-of-all", "first-token-of-all ", "third-token-of-all");
    assert!(same.len() == 1 && same[0].contains("the token contains a space"), "{same:?}");
    let bad = problems("too-short", "a blank in the token", "third-token-of-all");
    assert_eq!(bad.len(), 2, "{bad:?}");
    assert!(bad[0].contains("caller[0].token_file: the token is shorter than 16 characters"), "{bad:?}");
    assert!(bad[1].contains("caller[1].token_env: the token contains a space"), "{bad:?}");
    assert!(!bad.join("").contains("too-short") && !bad.join("").contains("a blank in the token"), "{bad:?}");
}

#[test]
fn list_of_tokens_quotes_files_but_no_token() {
    let folder = Folder::with(&format!("{APP}[[caller]]\nname = 'a'\ntoken_file = [\n'none',\n1234567890123456]\n"));
    let problems = folder.problems(&[]);
    assert_eq!(problems.len(), 2, "{problems:?}");
    let missing = "config.toml:9: caller[0].token_file: cannot read the file (no such file): \"none\"; check";
    assert!(problems[0].starts_with(missing), "{problems:?}");
    assert_eq!(problems[1], "config.toml:10: caller[0].token_file[1]: must be a string in quotes");
    assert!(!problems.concat().contains("1234567890123456"), "{problems:?}");
}

#[test]
fn one_caller_may_repeat_its_own_proofs() {
    let text = "[server]\nlisten = 'unix:/run/x.sock'\n\
        [[caller]]\nname = 'a'\ntoken_file = ['one', 'two', 'one']\nunix_uids = [7, 7]\n";
    let folder = Folder::with(&format!("{APP}{text}"));
    folder.secret("one", "first-token-of-all");
    folder.secret("two", "first-token-of-all\n");
    let config = folder.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((config.warnings.len(), config.callers[0].tokens.len()), (0, 3));
    // Each file is watched.
    assert_eq!(config.source.files.len(), 4);
}

#[test]
fn suspicious_proofs_of_callers_cause_warnings() {
    let text = "[server]\nunix_uids = [7]\n\
        [[caller]]\nname = 'a'\nusersig_key_file = 'chat-key'\n\
        [[caller]]\nname = 'b'\nusersig_key_file = 'key'\n\
        [[caller]]\nname = 'c'\nusersig_key_file = 'key'\nunix_uids = [7, 8]\n";
    let folder = Folder::with(&format!("{APP}{text}"));
    folder.secret("key", "key-of-an-sdk-16");
    let warnings = folder.warnings();
    for (line, part) in [
        (10, "caller[0].usersig_key_file: an [[app]] has this key, so the caller can sign for Chat itself"),
        (16, "caller[2].usersig_key_file: another caller has this key (line 13), so each can sign as the other"),
        (17, "caller[2].unix_uids: has no effect, because server.listen has no Unix socket"),
        (17, "caller[2].unix_uids: this user may not use the Unix sockets: 8; add it to server.unix_uids"),
    ] {
        let expected = format!("config.toml:{line}: {part}");
        assert!(warnings.iter().any(|warning| warning.starts_with(&expected)), "{expected}\n{warnings:#?}");
    }
    assert_eq!(warnings.len(), 4, "{warnings:#?}");
    folder.secret("key", "key-of-an-sdk15");
    assert_eq!(folder.warnings().iter().filter(|text| text.contains("shorter than 16 characters")).count(), 2);
}

#[test]
fn callers_are_limited_to_a_thousand() {
    let text = |count: usize| -> String {
        let caller = |number: usize| format!("[[caller]]\nname = 'c{number}'\ntoken_env = 'T{number}'\n");
        format!("{APP}{}", (0..count).map(caller).collect::<String>())
    };
    let names: Vec<String> = (0..=CALLERS_MAX).map(|number| format!("T{number}")).collect();
    let tokens: Vec<String> = (0..=CALLERS_MAX).map(|number| format!("a-token-of-caller-{number}")).collect();
    let env: Vec<(&str, &str)> = names.iter().zip(&tokens).map(|(name, token)| (&**name, &**token)).collect();
    assert_eq!(Folder::with(&text(CALLERS_MAX)).load(&env).map(|config| config.callers.len()).ok(), Some(CALLERS_MAX));
    let problems = Folder::with(&text(CALLERS_MAX + 1)).problems(&env);
    assert!(problems.len() == 1 && problems[0].contains("caller: more than 1000 callers"), "{problems:?}");
}

#[test]
fn unreadable_file_has_one_problem() {
    let folder = Folder::with("a = 1\nb = '\u{e9}'\n");
    fs::write(&folder.file, b"a = 1\nb = '\xe9'\n").expect("written");
    assert_eq!(folder.problems(&[]), ["config.toml:2: not valid UTF-8; encode it as UTF-8"]);
    fs::write(&folder.file, "#".repeat(FILE_LEN_MAX + 1)).expect("written");
    assert_eq!(folder.problems(&[]), ["config.toml: larger than 1 MiB; check that it is a chatgate configuration"]);
    fs::remove_file(&folder.file).expect("removed");
    assert!(
        folder.problems(&[])[0].starts_with("config.toml: cannot read the file: No such file"),
        "{:?}",
        folder.problems(&[])
    );
    let problems = load(folder.folder.path(), &Env::default()).map(|_| ()).expect_err("a folder").to_string();
    assert!(problems.contains("cannot read the file: Is a directory"), "{problems}");
}

#[test]
fn byte_order_mark_and_crlf_are_accepted() {
    let text = format!("\u{feff}{}", APP.replace('\n', "\r\n"));
    assert!(Folder::with(&text).load(&[]).is_ok());
    let problems = Folder::with(&format!("{text}x = 1\r\n")).problems(&[]);
    assert!(problems[0].starts_with("config.toml:6: app[0].x: "), "{problems:?}");
}
