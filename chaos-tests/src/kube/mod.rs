//! A real Kubernetes cluster, known by KUBECONFIG and image references only: the chart is applied, pods write verified
//! data, and processes on the nodes are killed through an agent pod per node.
//!
//! | environment | |
//! |---|---|
//! | `KUBECONFIG` | the cluster; two or more Ready nodes |
//! | `FUSEFS_KUBE_IMAGE` | image with `fusefs`, which the nodes have or can pull |
//! | `FUSEFS_KUBE_IMAGE_NEXT` | another reference of such an image, for rolling upgrades; default: the same with tag `TAG-next` |
//! | `FUSEFS_KUBE_TOOLBOX` | image with bash, coreutils, sed, ps and nsenter |
//! | `FUSEFS_KUBE_S3_IMAGE` | image whose entry point is versitygw |
//! | `FUSEFS_KUBECTL`, `FUSEFS_HELM` | programs; default: from PATH, helm also from target/tools/bin |
//! | `FUSEFS_KUBE_CHART`, `FUSEFS_KUBE_VALUES` | chart to render; one more file with values |
//! | `FUSEFS_KUBE_NODE_REBOOT` | command that cuts a node's power and starts it again; `{node}` is its name |
//! | `FUSEFS_KUBE_RUNTIME` | `pod` (default) or `mountd` |
//! | `FUSEFS_KUBE_FULL=1`, `FUSEFS_KUBE_KEEP=1` | everything instead of the smoke; leave the release for the next run |
//! | `FUSEFS_KUBE_ONLY` | only faults with this in their names, such as `deletion of metanode` |
//! | `FUSEFS_KUBE_ROUNDS` | how often each server is deleted; default 1 |

// Another program's cluster: real time, and nothing but polling tells when it got there.
#![allow(clippy::disallowed_methods)]

pub mod agent;
pub mod apps;
pub mod cluster;
pub mod deploy;
pub mod table;

pub use agent::{Agent, Part, Process};
pub use apps::{App, Mark, Use};
pub use cluster::{Cluster, Settings};
pub use deploy::Release;
pub use table::Table;
