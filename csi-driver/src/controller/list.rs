//! Listing. Pages are cut by volume numbers, which grow and are never used twice: volumes that come or go between two
//! pages neither repeat nor hide others.

use super::{
    Controller,
    volume::{gone, shown, signed},
};
use crate::{
    Outcome,
    fault::Fault,
    valid::{Capability, Parameters, TEXT_BYTES_MAX, VolumeHandle},
};
use fusefs_proto::csi::*;
use fusefs_types::cluster::Publication;
use std::collections::BTreeMap;

/// Most volumes in one page, whatever is asked for: about 2 MiB.
const PAGE_MAX: usize = 8192;
/// What a token starts with.
const TOKEN: &str = "after-";

/// The number after which a page starts.
fn start(token: &str) -> Outcome<u64> {
    if token.is_empty() {
        return Ok(0);
    }
    let digits =
        token.strip_prefix(TOKEN).filter(|d| token.len() <= TEXT_BYTES_MAX && d.bytes().all(|b| b.is_ascii_digit()));
    digits
        .and_then(|d| d.parse().ok())
        .ok_or_else(|| Fault::aborted("starting_token is none of ours; start again without one"))
}

impl Controller {
    pub(super) async fn list(&self, r: &ListVolumesRequest) -> Outcome<ListVolumesResponse> {
        let most = match usize::try_from(r.max_entries) {
            Ok(0) => PAGE_MAX,
            Ok(n) => n.min(PAGE_MAX),
            Err(_) => return Err(Fault::invalid("max_entries is negative")),
        };
        let after = start(&r.starting_token)?;
        let mut volumes = self.masters.list().await?;
        volumes.retain(|v| v.id.0 > after);
        volumes.sort_by_key(|v| v.id);
        let more = volumes.len() > most;
        volumes.truncate(most);
        let mut nodes: BTreeMap<_, Vec<String>> = BTreeMap::new();
        if !volumes.is_empty() {
            for p in self.masters.publications(None).await? {
                if p.part.is_empty() {
                    nodes.entry(p.volume).or_default().push(p.node);
                }
            }
        }
        let next_token = match volumes.last() {
            Some(last) if more => format!("{TOKEN}{}", last.id.0),
            _ => String::new(),
        };
        let entries = volumes
            .into_iter()
            .map(|v| list_volumes_response::Entry {
                volume: Some(shown(v.name.clone(), &v)),
                status: Some(list_volumes_response::VolumeStatus {
                    published_node_ids: nodes.remove(&v.id).unwrap_or_default(),
                    volume_condition: None,
                }),
            })
            .collect();
        Ok(ListVolumesResponse { entries, next_token })
    }

    pub(super) async fn get(&self, r: &ControllerGetVolumeRequest) -> Outcome<ControllerGetVolumeResponse> {
        let handle = VolumeHandle::parse(&r.volume_id)?;
        let v = self.masters.find(&handle.volume).await?.ok_or_else(gone)?;
        let part = handle.subdir.as_ref().map_or("", |s| s.as_str());
        let publications = self.masters.publications(Some(v.id)).await?;
        let nodes = publications.into_iter().filter(|p: &Publication| p.part == part).map(|p| p.node).collect();
        Ok(ControllerGetVolumeResponse {
            volume: Some(shown(handle.to_string(), &v)),
            status: Some(controller_get_volume_response::VolumeStatus {
                published_node_ids: nodes,
                volume_condition: None,
            }),
        })
    }

    pub(super) async fn capacity(&self, r: &GetCapacityRequest) -> Outcome<GetCapacityResponse> {
        let Some(free) = self.pool_free().await? else {
            return Err(Fault::unimplemented("the size of the pool is not configured"));
        };
        let supported = r.volume_capabilities.is_empty() || Capability::parse_all(&r.volume_capabilities).is_ok();
        let possible = supported && Parameters::parse(&r.parameters, &Default::default()).is_ok();
        let free = if possible { free } else { 0 };
        Ok(GetCapacityResponse {
            available_capacity: signed(free),
            maximum_volume_size: Some(signed(free)),
            minimum_volume_size: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::start;

    #[test]
    fn tokens() {
        assert_eq!(start(""), Ok(0));
        assert_eq!(start("after-12"), Ok(12));
        for bad in ["12", "after-", "after--1", "after-+1", "after-99999999999999999999", "invalid-token", "after-1\0"]
        {
            assert_eq!(start(bad).expect_err(bad).code, tonic::Code::Aborted, "{bad}");
        }
    }
}
