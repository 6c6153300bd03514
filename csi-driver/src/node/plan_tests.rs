//! Tables: every decision against every state it can meet.

use super::*;
use crate::node::{
    model::{AccessMode, Capability, Subdir, VolumeId},
    options::MountOptions,
};
use tonic::Code;

const STAGING: &str = "/k/stage";
const MODES: [AccessMode; 7] = [
    AccessMode::SingleNodeWriter,
    AccessMode::SingleNodeReader,
    AccessMode::MultiNodeReader,
    AccessMode::MultiNodeSingleWriter,
    AccessMode::MultiNodeMultiWriter,
    AccessMode::SingleNodeSingleWriter,
    AccessMode::SingleNodeMultiWriter,
];

fn volume() -> VolumeId {
    VolumeId::parse("vol").unwrap()
}

fn capability(mode: AccessMode) -> Capability {
    Capability { mode, options: MountOptions::default(), group: None }
}

fn request() -> StageRequest {
    StageRequest {
        volume: volume(),
        name: "vol".into(),
        staging: STAGING.into(),
        capability: capability(AccessMode::MultiNodeMultiWriter),
        generation: 1,
    }
}

fn staged(phase: Phase) -> VolumeRecords {
    VolumeRecords { stage: Some(StageRecord::new(&request(), phase)), targets: Vec::new() }
}

fn pod(target: &str) -> PublishRequest {
    PublishRequest {
        volume: volume(),
        staging: STAGING.into(),
        target: target.into(),
        capability: capability(AccessMode::MultiNodeMultiWriter),
        readonly: false,
        subdir: Subdir::default(),
    }
}

fn line(point: &str, source: &str, device: &str, options: &str) -> Mount {
    Mount {
        device: device.into(),
        root: "/".into(),
        point: point.into(),
        options: options.into(),
        source: source.into(),
    }
}

fn ours_at(point: &str, device: &str) -> Mount {
    line(point, "fusefs#vol", device, "rw,nosuid,nodev,relatime")
}

fn code<T: std::fmt::Debug>(r: Outcome<T>) -> Code {
    r.unwrap_err().code
}

#[test]
fn the_table_of_access_modes() {
    for mode in MODES {
        let single = matches!(
            mode,
            AccessMode::SingleNodeSingleWriter | AccessMode::SingleNodeWriter | AccessMode::SingleNodeReader
        );
        let first = PublishRequest { capability: capability(mode), ..pod("/t1") };
        let records = [TargetRecord::new(&first, Phase::Made)];
        assert_eq!(access(&[], &first), Ok(()), "{mode:?}: the first");
        assert_eq!(access(&records, &first), Ok(()), "{mode:?}: T1=T2, P1=P2");
        let other_mode = MODES.into_iter().find(|m| *m != mode).unwrap();
        for differs in [
            PublishRequest { readonly: true, ..first.clone() },
            PublishRequest { capability: capability(other_mode), ..first.clone() },
            PublishRequest { subdir: Subdir::parse("a").unwrap(), ..first.clone() },
        ] {
            assert_eq!(code(access(&records, &differs)), Code::AlreadyExists, "{mode:?}: T1=T2, P1!=P2");
        }
        for phase in [Phase::Making, Phase::Made, Phase::Ending] {
            let records = [TargetRecord::new(&first, phase)];
            for readonly in [false, true] {
                let second = PublishRequest { target: "/t2".into(), readonly, ..first.clone() };
                let answer = access(&records, &second);
                match single {
                    true => assert_eq!(code(answer), Code::FailedPrecondition, "{mode:?} {phase:?}: T1!=T2"),
                    false => assert_eq!(answer, Ok(()), "{mode:?} {phase:?}: T1!=T2"),
                }
            }
        }
    }
}

#[test]
fn staging_by_what_is_mounted() {
    use Health::{Alive, Dead, Silent};
    let live = ours_at(STAGING, "0:9");
    let foreign = line(STAGING, "tmpfs", "0:7", "rw");
    let table: [(&[Mount], Health, Result<StagePlan, Code>); 7] = [
        (&[], Silent, Ok(StagePlan::Mount { detach: 0 })),
        (std::slice::from_ref(&live), Alive, Ok(StagePlan::Adopt)),
        (std::slice::from_ref(&live), Silent, Err(Code::Unavailable)),
        (std::slice::from_ref(&live), Dead, Ok(StagePlan::Mount { detach: 1 })),
        (&[live.clone(), ours_at(STAGING, "0:10")], Dead, Ok(StagePlan::Mount { detach: 2 })),
        (&[foreign.clone(), live.clone()], Dead, Ok(StagePlan::Mount { detach: 1 })),
        (&[live.clone(), foreign.clone()], Alive, Err(Code::FailedPrecondition)),
    ];
    for (mounts, health, expected) in table {
        let mounts = Mounts(mounts.to_vec());
        for records in [VolumeRecords::default(), staged(Phase::Making), staged(Phase::Made), staged(Phase::Ending)] {
            let view = View { records: &records, mounts: &mounts, health };
            assert_eq!(stage(view, &request()).map_err(|f| f.code), expected, "{mounts:?} {health:?} {records:?}");
        }
    }
}

#[test]
fn staging_again_with_other_properties() {
    let none = Mounts::default();
    let live = Mounts(vec![ours_at(STAGING, "0:9")]);
    let answer = |records: &VolumeRecords, mounts: &Mounts, request: &StageRequest| {
        stage(View { records, mounts, health: Health::Alive }, request).map_err(|f| f.code)
    };
    let other = StageRequest { capability: capability(AccessMode::MultiNodeReader), ..request() };
    assert_eq!(answer(&staged(Phase::Made), &live, &other), Err(Code::AlreadyExists));
    assert_eq!(answer(&staged(Phase::Made), &none, &other), Err(Code::AlreadyExists));
    assert_eq!(answer(&staged(Phase::Making), &live, &other), Err(Code::AlreadyExists));
    assert_eq!(answer(&staged(Phase::Making), &none, &other), Ok(StagePlan::Mount { detach: 0 })); // it never was
    let elsewhere = StageRequest { staging: "/k/other".into(), ..request() };
    assert_eq!(answer(&staged(Phase::Made), &live, &elsewhere), Err(Code::FailedPrecondition));
    assert_eq!(answer(&staged(Phase::Making), &none, &elsewhere), Ok(StagePlan::Mount { detach: 0 }));
    // A new attach generation is no other property: the mount stays.
    let attached = StageRequest { generation: 2, ..request() };
    assert_eq!(answer(&staged(Phase::Made), &live, &attached), Ok(StagePlan::Adopt));
}

#[test]
fn unstaging_by_what_is_mounted() {
    use Health::{Alive, Dead, Silent};
    let live = ours_at(STAGING, "0:9");
    let mut published = staged(Phase::Made);
    published.targets = vec![TargetRecord::new(&pod("/t1"), Phase::Made)];
    let answer = |records: &VolumeRecords, mounts: &[Mount], health| {
        let mounts = Mounts(mounts.to_vec());
        unstage(View { records, mounts: &mounts, health }, Path::new(STAGING)).map_err(|f| f.code)
    };
    let nothing = VolumeRecords::default();
    assert_eq!(answer(&nothing, &[], Silent), Ok(UnstagePlan::Nothing));
    assert_eq!(answer(&staged(Phase::Made), &[], Silent), Ok(UnstagePlan::Forget));
    for records in [nothing, staged(Phase::Making), staged(Phase::Made), staged(Phase::Ending)] {
        let live = std::slice::from_ref(&live);
        assert_eq!(answer(&records, live, Alive), Ok(UnstagePlan::Unmount));
        assert_eq!(answer(&records, live, Silent), Ok(UnstagePlan::Unmount)); // slow is not dead
        assert_eq!(answer(&records, live, Dead), Ok(UnstagePlan::Detach(1)));
        let foreign = [line(STAGING, "tmpfs", "0:7", "rw")];
        assert_eq!(answer(&records, &foreign, Silent), Err(Code::FailedPrecondition));
    }
    let bound = [live.clone(), ours_at("/t1", "0:9")];
    assert_eq!(answer(&published, &bound, Alive), Err(Code::FailedPrecondition));
    assert_eq!(answer(&published, std::slice::from_ref(&live), Alive), Ok(UnstagePlan::Unmount)); // nothing is there
}

#[test]
fn publishing_by_what_is_mounted() {
    use Health::{Alive, Dead, Silent};
    let live = || ours_at(STAGING, "0:9");
    let answer = |records: &VolumeRecords, mounts: &[Mount], health, request: &PublishRequest| {
        let mounts = Mounts(mounts.to_vec());
        publish(View { records, mounts: &mounts, health }, request).map_err(|f| f.code)
    };
    let bind = |detach| Ok(PublishPlan::Target(BindPlan::Bind { detach }));
    let keep = Ok(PublishPlan::Target(BindPlan::Keep));
    let (made, t) = (staged(Phase::Made), pod("/t1"));
    let not_staged = Err(Code::FailedPrecondition);
    for records in [VolumeRecords::default(), staged(Phase::Making), staged(Phase::Ending)] {
        assert_eq!(answer(&records, &[live()], Alive, &t), not_staged);
    }
    assert_eq!(answer(&made, &[live()], Alive, &PublishRequest { staging: "/x".into(), ..t.clone() }), not_staged);
    assert_eq!(answer(&made, &[], Silent, &t), Ok(PublishPlan::Repair));
    assert_eq!(answer(&made, &[live()], Dead, &t), Ok(PublishPlan::Repair));
    assert_eq!(answer(&made, &[live()], Silent, &t), Err(Code::Unavailable));
    assert_eq!(answer(&made, &[live()], Alive, &t), bind(0));
    assert_eq!(answer(&made, &[live(), ours_at("/t1", "0:9")], Alive, &t), keep);
    assert_eq!(answer(&made, &[live(), ours_at("/t1", "0:9")], Silent, &t), keep);
    assert_eq!(answer(&made, &[live(), ours_at("/t1", "0:8")], Alive, &t), bind(1)); // of an earlier mount
    assert_eq!(answer(&made, &[live(), ours_at("/t1", "0:9"), ours_at("/t1", "0:9")], Alive, &t), bind(2)); // stacked
    let foreign = [live(), line("/t1", "tmpfs", "0:7", "rw")];
    assert_eq!(answer(&made, &foreign, Alive, &t), Err(Code::FailedPrecondition));
    let read_only = PublishRequest { readonly: true, ..t.clone() };
    let bare = [live(), ours_at("/t1", "0:9")];
    assert_eq!(answer(&made, &bare, Alive, &read_only), Ok(PublishPlan::Target(BindPlan::Flags)));
    let ro = [live(), line("/t1", "fusefs#vol", "0:9", "ro,nosuid,nodev,relatime")];
    assert_eq!(answer(&made, &ro, Alive, &read_only), keep);
    let sub = PublishRequest { subdir: Subdir::parse("a/b").unwrap(), ..t };
    assert_eq!(answer(&made, &bare, Alive, &sub), bind(1)); // the root instead of the directory
    let there = Mount { root: "/a/b".into(), ..ours_at("/t1", "0:9") };
    assert_eq!(answer(&made, &[live(), there], Alive, &sub), keep);
}

#[test]
fn unpublishing_takes_every_layer_and_nothing_foreign() {
    let answer = |mounts: &[Mount], path: &str| {
        let (records, mounts) = (staged(Phase::Made), Mounts(mounts.to_vec()));
        unpublish(View { records: &records, mounts: &mounts, health: Health::Dead }, Path::new(path))
            .map_err(|f| f.code)
    };
    assert_eq!(answer(&[], "/t1"), Ok(0));
    assert_eq!(answer(&[ours_at("/t1", "0:8"), ours_at("/t1", "0:9")], "/t1"), Ok(2));
    let foreign = line("/t1", "tmpfs", "0:7", "rw");
    assert_eq!(answer(&[foreign.clone(), ours_at("/t1", "0:9")], "/t1"), Err(Code::FailedPrecondition));
    assert_eq!(answer(&[ours_at(STAGING, "0:9")], STAGING), Err(Code::FailedPrecondition));
}

#[test]
fn recovery_remounts_only_what_is_proven_dead() {
    use Health::{Alive, Dead, Silent};
    let live = [ours_at(STAGING, "0:9")];
    let answer = |records: &VolumeRecords, mounts: &[Mount], health| {
        let mounts = Mounts(mounts.to_vec());
        repair(View { records, mounts: &mounts, health })
    };
    for records in [VolumeRecords::default(), staged(Phase::Making), staged(Phase::Ending)] {
        assert_eq!(answer(&records, &live, Dead), RepairPlan::Leave);
    }
    let made = staged(Phase::Made);
    assert_eq!(answer(&made, &live, Alive), RepairPlan::Adopt);
    assert_eq!(answer(&made, &live, Silent), RepairPlan::Adopt);
    assert_eq!(answer(&made, &live, Dead), RepairPlan::Remount { detach: 1 });
    assert_eq!(answer(&made, &[], Silent), RepairPlan::Remount { detach: 0 });
    assert_eq!(answer(&made, &[line(STAGING, "tmpfs", "0:7", "rw")], Silent), RepairPlan::Foreign);
}

#[test]
fn recovery_binds_promised_targets_that_are_not_right() {
    let mut records = staged(Phase::Made);
    let target = |path: &str, phase| TargetRecord::new(&pod(path), phase);
    records.targets = vec![
        target("/right", Phase::Made),
        target("/gone", Phase::Made),
        target("/old", Phase::Made),
        target("/stacked", Phase::Made),
        target("/making", Phase::Making),
        target("/ending", Phase::Ending),
        target("/foreign", Phase::Made),
    ];
    let mounts = Mounts(vec![
        ours_at(STAGING, "0:9"),
        ours_at("/right", "0:9"),
        ours_at("/old", "0:8"),
        ours_at("/stacked", "0:8"),
        ours_at("/stacked", "0:9"),
        line("/foreign", "tmpfs", "0:7", "rw"),
    ]);
    let plan: Vec<_> =
        rebinds(&records, &mounts).into_iter().map(|(p, b)| (p.display().to_string(), b.map_err(|f| f.code))).collect();
    let expected = [
        ("/gone", Ok(BindPlan::Bind { detach: 0 })),
        ("/old", Ok(BindPlan::Bind { detach: 1 })),
        ("/stacked", Ok(BindPlan::Bind { detach: 2 })),
        ("/foreign", Err(Code::FailedPrecondition)),
    ];
    assert_eq!(plan, expected.map(|(p, b)| (p.to_owned(), b)));
    assert!(rebinds(&records, &Mounts::default()).is_empty()); // no mount, nothing to bind
}

#[test]
fn a_volume_has_one_group_on_a_node() {
    let with = |group| Capability { group, ..request().capability };
    let stage_with = |group| StageRequest { capability: with(group), ..request() };
    let pod_with = |group| PublishRequest { capability: with(group), ..pod("/t1") };
    let mounts = Mounts(vec![ours_at(STAGING, "0:1")]);
    for (staged, asked, again, published) in [
        (None, None, true, true),
        (Some(7), Some(7), true, true),
        (Some(7), None, true, true),
        (Some(7), Some(8), false, false),
        (None, Some(8), false, false),
    ] {
        let record = StageRecord::new(&stage_with(staged), Phase::Made);
        let records = VolumeRecords { stage: Some(record), targets: Vec::new() };
        let view = View { records: &records, mounts: &mounts, health: Health::Alive };
        let request = inherited(view, &stage_with(asked));
        assert_eq!(stage(view, &request).is_ok(), again, "{staged:?} {asked:?}");
        let answer = publish(view, &pod_with(asked));
        assert_eq!(answer.is_ok(), published, "{staged:?} {asked:?}");
        if !published {
            assert_eq!(code(answer), Code::AlreadyExists);
            assert_eq!(code(stage(view, &request)), Code::AlreadyExists);
        }
    }
    // A mount that is gone and was never promised binds nobody.
    let stage_record = Some(StageRecord::new(&stage_with(Some(7)), Phase::Making));
    let records = VolumeRecords { stage: stage_record, targets: Vec::new() };
    let view = View { records: &records, mounts: &Mounts::default(), health: Health::Silent };
    assert_eq!(inherited(view, &stage_with(None)).capability.group, None);
    assert_eq!(stage(view, &stage_with(Some(8))), Ok(StagePlan::Mount { detach: 0 }));
}
