//! The packed tree against `BTreeMap`, with clones that must not change.

use fusefs_meta_state::store::{PackedTree, Tree};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn same(tree: &PackedTree, model: &BTreeMap<Vec<u8>, Vec<u8>>) {
    assert_eq!(tree.len(), model.len() as u64);
    let all: Vec<_> = tree.scan(vec![]).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
    let want: Vec<_> = model.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(all, want);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn like_a_btree_map(ops in prop::collection::vec((0u8..10, 0u16..400, 0usize..700), 1..400)) {
        let mut tree = PackedTree::default();
        let mut model = BTreeMap::new();
        let mut frozen = None;
        for (i, (op, key, size)) in ops.into_iter().enumerate() {
            let key = key.to_be_bytes()[..].repeat(1 + usize::from(key % 3));
            match op {
                0..=5 => {
                    let value = vec![op; size];
                    prop_assert_eq!(tree.put(&key, &value, i as u64), model.insert(key, value).is_none());
                }
                6 | 7 => prop_assert_eq!(tree.remove(&key, i as u64), model.remove(&key).is_some()),
                8 => frozen = Some((tree.clone(), model.clone())),
                _ => {
                    prop_assert_eq!(tree.get(&key), model.get(&key).map(|v| &v[..]));
                    let floor = model.range(..=key.clone()).next_back().map(|(k, v)| (&k[..], &v[..]));
                    prop_assert_eq!(tree.floor(&key), floor);
                    let above: Vec<_> = tree.scan(key.clone()).take(3).map(|(k, _)| k.to_vec()).collect();
                    let want: Vec<_> = model.range(key..).take(3).map(|(k, _)| k.clone()).collect();
                    prop_assert_eq!(above, want);
                }
            }
        }
        same(&tree, &model);
        if let Some((tree, model)) = frozen {
            same(&tree, &model);
        }
    }
}

#[test]
fn removing_everything_leaves_nothing() {
    let mut tree = PackedTree::default();
    for i in 0..20_000u32 {
        tree.put(&i.to_be_bytes(), &[1; 30], 1);
    }
    let full = tree.blocks().count();
    for i in (0..20_000u32).filter(|i| i % 50 != 0) {
        tree.remove(&i.to_be_bytes(), 2);
    }
    assert_eq!(tree.len(), 400);
    assert!(tree.blocks().count() * 10 < full, "sparse blocks are merged: {} of {full}", tree.blocks().count());
    for i in 0..20_000u32 {
        tree.remove(&i.to_be_bytes(), 3);
    }
    assert_eq!((tree.len(), tree.scan(vec![]).count()), (0, 0));
}
