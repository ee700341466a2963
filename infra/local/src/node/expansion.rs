//! The expansion of `$(VAR)` in commands, arguments and environment values, as the kubelet does it. `$VAR` and `${VAR}`
//! mean nothing, as there is no shell.

/// Replaces each `$(NAME)` that `value_of` knows, and `$$` by `$`. An unknown or unfinished reference stays as it is.
pub(crate) fn expand(text: &str, value_of: impl Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|reference| reference.split_once(')')) {
            expanded.push_str(&value_of(name).unwrap_or_else(|| format!("$({name})")));
            rest = after;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_as_in_the_kubelet() {
        let cases = [
            ("no reference", "train.py", "train.py"),
            ("a reference", "$(HOST):$(PORT)", "master:23456"),
            ("unknown", "$(NOBODY)", "$(NOBODY)"),
            ("escaped", "$$(HOST)", "$(HOST)"),
            ("escaped twice", "$$$$(HOST)", "$$(HOST)"),
            ("escape before a reference", "$$$(HOST)", "$master"),
            ("shell syntax is text", "$HOST ${HOST}", "$HOST ${HOST}"),
            ("unfinished", "a $(HOST", "a $(HOST"),
            ("lone dollar at the end", "cost: 5$", "cost: 5$"),
            ("value is not expanded again", "$(NESTED)", "$(HOST)"),
            ("empty", "", ""),
            ("not ASCII", "é$(HOST)é", "émasteré"),
        ];
        for (label, text, expected) in cases {
            let value_of = |name: &str| match name {
                "HOST" => Some("master".to_owned()),
                "PORT" => Some("23456".to_owned()),
                "NESTED" => Some("$(HOST)".to_owned()),
                _ => None,
            };
            assert_eq!(expand(text, value_of), expected, "{label}");
        }
    }
}
