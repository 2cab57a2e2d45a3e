//! Merges TOML by keys: changes to neighbouring lines of `[dependencies]` conflict for git, but not for cargo.

use toml_edit::{Decor, DocumentMut, Item, Key, RawString, Table};

/// Merges what changed from `base` to `theirs` into `ours`. `None` when both changed the same key, or when the
/// template changed a comment line.
pub fn merge(base: &str, ours: &str, theirs: &str) -> Option<String> {
    let comments = |text: &str| -> Vec<String> {
        text.lines().map(str::trim).filter(|line| line.starts_with('#')).map(str::to_owned).collect()
    };
    if comments(base) != comments(theirs) {
        return None;
    }
    let base: DocumentMut = base.parse().ok()?;
    let theirs: DocumentMut = theirs.parse().ok()?;
    let mut merged: DocumentMut = ours.parse().ok()?;
    take(base.as_table(), merged.as_table_mut(), theirs.as_table())?;
    Some(merged.to_string())
}

fn take(base: &Table, ours: &mut Table, theirs: &Table) -> Option<()> {
    for (name, was) in base {
        if theirs.contains_key(name) {
            continue;
        }
        match ours.get(name) {
            Some(item) if same(item, was) => remove(base, ours, name)?,
            Some(_) => return None,
            None => {}
        }
    }
    for (name, is) in theirs {
        let was = base.get(name);
        if was.is_some_and(|was| same(was, is)) {
            continue;
        }
        match (was, ours.get_mut(name), is) {
            (was, Some(Item::Table(ours)), Item::Table(is)) => {
                let nothing = Table::new();
                take(was.and_then(Item::as_table).unwrap_or(&nothing), ours, is)?;
            }
            (_, Some(item), is) if same(item, is) => {}
            (Some(was), Some(item), is) if same(item, was) => match (item, is) {
                // Only the value is replaced: the spaces and comments around it are the owner's.
                (Item::Value(old), Item::Value(new)) => {
                    let decor = old.decor().clone();
                    *old = new.clone();
                    *old.decor_mut() = decor;
                }
                (item, is) => *item = is.clone(),
            },
            (None, None, is) => match theirs.key(name) {
                Some(key) => drop(ours.insert_formatted(key, is.clone())),
                None => drop(ours.insert(name, is.clone())),
            },
            _ => return None,
        }
    }
    Some(())
}

/// Removes `name` from `ours`. The owner's comment above it moves to the next key; `None` when no key follows.
fn remove(base: &Table, ours: &mut Table, name: &str) -> Option<()> {
    let above = |table: &Table| -> String {
        let decor = match table.get(name) {
            Some(Item::Table(table)) => Some(table.decor()),
            _ => table.key(name).map(Key::leaf_decor),
        };
        decor.and_then(Decor::prefix).and_then(RawString::as_str).unwrap_or_default().to_owned()
    };
    let (was, is) = (above(base), above(ours));
    let next = ours.iter().skip_while(|(key, _)| *key != name).nth(1);
    let next = next.filter(|(_, item)| item.is_value()).map(|(key, _)| key.to_owned());
    ours.remove(name);
    if was.trim() == is.trim() {
        return Some(());
    }
    let mut next = ours.key_mut(&next?)?;
    let decor = next.leaf_decor_mut();
    let below = decor.prefix().and_then(RawString::as_str).unwrap_or_default();
    decor.set_prefix(is + below);
    Some(())
}

/// Compares tables by their keys, since the text of a table leaves out the tables in it.
fn same(one: &Item, other: &Item) -> bool {
    match (one.as_table(), other.as_table()) {
        (Some(one), Some(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, item)| other.get(name).is_some_and(|other| same(item, other)))
        }
        _ => one.to_string().trim() == other.to_string().trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::merge;

    const BASE: &str = "[package]\nname = \"x\"\n\n[dependencies]\na = \"1\"\nb = \"1\"\n";

    #[test]
    fn neighbours_do_not_contradict() {
        let ours = BASE.replace("b = \"1\"\n", "b = \"1\"\nmine = \"2\"\n");
        let theirs = BASE.replace("b = \"1\"\n", "b = \"2\"\nredis = { version = \"1\" }\n");
        let wanted = BASE.replace("b = \"1\"\n", "b = \"2\"\nmine = \"2\"\nredis = { version = \"1\" }\n");
        assert_eq!(merge(BASE, &ours, &theirs), Some(wanted.clone()));
        // And back.
        assert_eq!(merge(&theirs, &wanted, BASE), Some(ours));
    }

    #[test]
    fn one_key_changed_twice_is_for_its_owner_to_decide() {
        let (ours, theirs) = (BASE.replace("b = \"1\"", "b = \"3\""), BASE.replace("b = \"1\"", "b = \"2\""));
        assert_eq!(merge(BASE, &ours, &theirs), None);
        assert_eq!(merge(BASE, &ours, &BASE.replace("b = \"1\"\n", "")), None);
        // The same change on both sides is no conflict.
        assert_eq!(merge(BASE, &ours, &ours), Some(ours.clone()));
    }

    #[test]
    fn a_table_may_be_in_a_table() {
        let lints = |level: &str| format!("{BASE}\n[lints.rust]\nunused = \"{level}\"\n");
        let mine = |level| lints(level).replace("b = \"1\"\n", "b = \"1\"\nmine = \"2\"\n");
        assert_eq!(merge(&lints("warn"), &mine("warn"), &lints("deny")), Some(mine("deny")));
        // What the template drops does not take with it what the owner has put beside it.
        let target = |os| format!("\n[target.'cfg({os})'.dependencies]\nc = \"1\"\n");
        let base = format!("{BASE}{}", target("unix"));
        assert_eq!(merge(&base, &base, BASE).as_deref(), Some(BASE));
        assert_eq!(merge(&base, &format!("{base}{}", target("windows")), BASE), None);
    }

    #[test]
    fn a_remark_of_theirs_goes_to_what_follows() {
        let ours = BASE.replace("a = \"1\"", "\n# mine\na = \"1\"");
        let wanted = ours.replace("a = \"1\"\n", "");
        assert_eq!(merge(BASE, &ours, &BASE.replace("a = \"1\"\n", "")), Some(wanted));
        // Nothing follows it.
        let ours = BASE.replace("b =", "# mine\nb =");
        assert_eq!(merge(BASE, &ours, &BASE.replace("b = \"1\"\n", "")), None);
        let base = format!("{BASE}\n[lints]\nc = \"1\"\n");
        assert_eq!(merge(&base, &base.replace("[lints]", "# mine\n[lints]"), BASE), None);
    }

    #[test]
    fn a_remark_of_the_template_is_not_dropped_in_silence() {
        assert_eq!(merge(BASE, BASE, &BASE.replace("a =", "# why\na =")), None);
    }
}
