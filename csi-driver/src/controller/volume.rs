//! Create, delete, expand, validate.

use super::Controller;
use crate::{
    Outcome,
    fault::Fault,
    step::step,
    valid::{Capability, CapacityRange, Parameters, VolumeHandle, VolumeName, map_size, present},
};
use fusefs_proto::csi::{validate_volume_capabilities_response::Confirmed, *};
use fusefs_types::{
    FsError,
    cluster::{VolumeRecord, VolumeSpec},
};

/// Label with the name that the orchestrator asked for: also the sign that a volume is the driver's to delete.
const LABEL_NAME: &str = "csi.fusefs.io/name";
/// Label with [`Parameters::canonical`].
const LABEL_PARAMETERS: &str = "csi.fusefs.io/parameters";

fn label<'a>(v: &'a VolumeRecord, key: &str) -> Option<&'a str> {
    v.labels.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
}

/// The volume in answers. The same volume always looks the same.
pub(super) fn shown(id: String, v: &VolumeRecord) -> Volume {
    Volume { capacity_bytes: signed(v.capacity), volume_id: id, ..Volume::default() }
}

pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn gone() -> Fault {
    Fault::not_found("there is no such volume")
}

impl Controller {
    pub(super) async fn create(&self, r: &CreateVolumeRequest) -> Outcome<CreateVolumeResponse> {
        let name = VolumeName::for_request(&r.name)?;
        Capability::parse_all(&r.volume_capabilities)?;
        let range = CapacityRange::parse(r.capacity_range.as_ref())?;
        let parameters = Parameters::parse(&r.parameters, &r.mutable_parameters)?;
        map_size("secrets", &r.secrets)?;
        if r.volume_content_source.is_some() {
            return Err(Fault::invalid("volumes made from snapshots or other volumes are not supported by fusefs"));
        }
        let _busy = self.inflight.enter(name.as_str())?;
        step("controller.create.entered");
        let found = match self.masters.find(&name).await? {
            Some(v) => v,
            None => self.make(&name, r, range, parameters.clone()).await?,
        };
        step("controller.create.made");
        same(&found, &r.name, range, &parameters)?;
        Ok(CreateVolumeResponse { volume: Some(shown(found.name.clone(), &found)) })
    }

    async fn make(
        &self,
        name: &VolumeName,
        r: &CreateVolumeRequest,
        range: CapacityRange,
        parameters: Parameters,
    ) -> Outcome<VolumeRecord> {
        let capacity = range.choose();
        self.room_for(capacity, 0).await?;
        let mut labels =
            vec![(LABEL_NAME.to_owned(), r.name.clone()), (LABEL_PARAMETERS.to_owned(), parameters.canonical())];
        labels.extend(parameters.claim);
        let spec = VolumeSpec {
            name: name.as_str().to_owned(),
            store: parameters.store,
            capacity,
            inodes: parameters.inodes,
            partitions: parameters.partitions,
            replicas: parameters.replicas,
            labels,
        };
        match self.masters.create(spec).await {
            Ok(v) => Ok(v),
            // Another controller made it at the same moment: whether it is the same volume is seen by looking.
            Err(refused) if refused.error == FsError::Exists => {
                self.masters.find(name).await?.ok_or_else(|| Fault::aborted("the volume is being created; try again"))
            }
            // Here NotFound is the object store's, and the parameter that names it is wrong.
            Err(refused) if refused.error == FsError::NotFound => Err(Fault::invalid(refused.message)),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Refuses to promise more than the pool has. `old` bytes are the volume's already.
    async fn room_for(&self, capacity: u64, old: u64) -> Outcome<()> {
        let Some(free) = self.pool_free().await? else { return Ok(()) };
        if capacity == 0 {
            return Err(Fault::invalid("a capacity is required: volumes without a limit do not fit into a pool"));
        }
        if capacity > free.saturating_add(old) {
            return Err(Fault::exhausted(format!("the pool has {free} bytes left")));
        }
        Ok(())
    }

    /// Bytes of the pool that no volume has been promised; None without a pool.
    pub(super) async fn pool_free(&self) -> Outcome<Option<u64>> {
        let Some(pool) = self.settings.capacity_pool else { return Ok(None) };
        let volumes = self.masters.list().await?;
        let promised = |v: &VolumeRecord| if v.capacity == 0 { v.usage.bytes } else { v.capacity };
        Ok(Some(volumes.iter().fold(pool, |free, v| free.saturating_sub(promised(v)))))
    }

    pub(super) async fn delete(&self, r: &DeleteVolumeRequest) -> Outcome<DeleteVolumeResponse> {
        present("volume_id", &r.volume_id)?;
        map_size("secrets", &r.secrets)?;
        // No volume has an id that is none: it is as deleted as can be.
        let Ok(handle) = VolumeHandle::parse(&r.volume_id) else { return Ok(DeleteVolumeResponse {}) };
        if handle.subdir.is_some() {
            return Err(Fault::precondition(
                "this persistent volume is a directory of a volume, which is never deleted through it; set its reclaim \
                 policy to Retain",
            ));
        }
        let _busy = self.inflight.enter(handle.volume.as_str())?;
        let Some(v) = self.masters.find(&handle.volume).await? else { return Ok(DeleteVolumeResponse {}) };
        if label(&v, LABEL_NAME).is_none() {
            return Err(Fault::precondition(
                "this volume was not created through the driver; delete it with `fusefs volume delete`",
            ));
        }
        step("controller.delete.entered");
        self.masters.delete(&handle.volume).await?;
        step("controller.delete.deleted");
        Ok(DeleteVolumeResponse {})
    }

    pub(super) async fn expand(&self, r: &ControllerExpandVolumeRequest) -> Outcome<ControllerExpandVolumeResponse> {
        let handle = VolumeHandle::parse(&r.volume_id)?;
        if r.capacity_range.is_none() {
            return Err(Fault::invalid("capacity_range is required"));
        }
        let range = CapacityRange::parse(r.capacity_range.as_ref())?;
        map_size("secrets", &r.secrets)?;
        if r.volume_capability.is_some() {
            Capability::parse(r.volume_capability.as_ref())?;
        }
        if handle.subdir.is_some() {
            return Err(Fault::precondition("a directory of a volume has no size of its own; expand the volume"));
        }
        let _busy = self.inflight.enter(handle.volume.as_str())?;
        let v = self.masters.find(&handle.volume).await?.ok_or_else(gone)?;
        if range.contains(v.capacity) {
            return Ok(grown(v.capacity, range));
        }
        if v.capacity == 0 || v.capacity > range.limit {
            return Err(Fault::out_of_range("the volume is larger than the limit, and volumes cannot shrink"));
        }
        self.room_for(range.required, v.capacity).await.map_err(|f| Fault { code: tonic::Code::OutOfRange, ..f })?;
        step("controller.expand.entered");
        let v = self.masters.expand(&handle.volume, range.required, v.inodes).await?;
        step("controller.expand.expanded");
        Ok(grown(v.capacity, range))
    }

    pub(super) async fn validate(
        &self,
        r: &ValidateVolumeCapabilitiesRequest,
    ) -> Outcome<ValidateVolumeCapabilitiesResponse> {
        let handle = VolumeHandle::parse(&r.volume_id)?;
        if r.volume_capabilities.is_empty() {
            return Err(Fault::invalid("volume_capabilities are required"));
        }
        map_size("volume_context", &r.volume_context)?;
        map_size("secrets", &r.secrets)?;
        let v = self.masters.find(&handle.volume).await?.ok_or_else(gone)?;
        let no = |message: String| Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message });
        if let Err(fault) = Capability::parse_all(&r.volume_capabilities) {
            return no(fault.message);
        }
        let asked = match Parameters::parse(&r.parameters, &r.mutable_parameters) {
            Ok(p) => p,
            Err(fault) => return no(fault.message),
        };
        let given = !(r.parameters.is_empty() && r.mutable_parameters.is_empty());
        if given && label(&v, LABEL_PARAMETERS).is_some_and(|p| p != asked.canonical()) {
            return no("the volume was created with other parameters".to_owned());
        }
        let confirmed = Confirmed {
            volume_context: r.volume_context.clone(),
            volume_capabilities: r.volume_capabilities.clone(),
            parameters: r.parameters.clone(),
            mutable_parameters: r.mutable_parameters.clone(),
        };
        Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }
}

/// The size after an expansion; a volume without a limit has what was asked for.
fn grown(capacity: u64, range: CapacityRange) -> ControllerExpandVolumeResponse {
    let capacity = if capacity == 0 { range.required } else { capacity };
    ControllerExpandVolumeResponse { capacity_bytes: signed(capacity), node_expansion_required: false }
}

/// Whether an existing volume is the one that is asked for.
fn same(v: &VolumeRecord, name: &str, range: CapacityRange, parameters: &Parameters) -> Outcome<()> {
    if label(v, LABEL_NAME) != Some(name) {
        return Err(Fault::exists("a volume of that name exists and was not made for this request"));
    }
    if label(v, LABEL_PARAMETERS) != Some(parameters.canonical().as_str()) {
        return Err(Fault::exists("a volume of that name exists with other parameters"));
    }
    if !range.contains(v.capacity) {
        return Err(Fault::exists(format!("a volume of that name exists with {} bytes", v.capacity)));
    }
    Ok(())
}
