//! What comes from the API, gathered as the files of a volume.

use super::{ContentError, Files, Volumes};
use crate::boundary::{PodRef, TokenRequest};
use crate::env::{Keyed, field_value, object_data, resource_value};
use crate::model::{DownwardSource, KeyRef, KeyToPath, ObjectSource, Projected, ProjectedSource, TokenSource};

impl Volumes<'_> {
    pub(super) async fn add_object(
        &self,
        source: &ObjectSource,
        default_mode: Option<u32>,
        keyed: Keyed,
        files: &mut Files,
    ) -> Result<(), ContentError> {
        let reference = KeyRef { name: source.name.clone(), key: String::new(), optional: source.optional };
        let mut data = object_data(self.upstream, &PodRef::of(&self.pod.metadata), &reference, keyed).await?;
        let mode = default_mode.unwrap_or(0o644);
        if source.items.is_empty() {
            return data.into_iter().try_for_each(|(key, content)| files.add(&key, content, mode));
        }
        for KeyToPath { key, path, mode: own } in &source.items {
            match data.remove(key) {
                Some(content) => files.add(path, content, own.unwrap_or(mode))?,
                None if source.optional => {}
                None => return Err(ContentError::NoKey(key.clone())),
            }
        }
        Ok(())
    }

    pub(super) fn add_downward(
        &self,
        source: &DownwardSource,
        default_mode: Option<u32>,
        files: &mut Files,
    ) -> Result<(), ContentError> {
        let mode = default_mode.unwrap_or(0o644);
        for item in &source.items {
            let content = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => field_value(self.pod, self.facts, &field.field_path)?,
                (None, Some(resource)) => resource_value(
                    self.pod,
                    self.pod.spec.containers.first().ok_or(ContentError::NoContainer)?,
                    resource,
                )?,
                (None, None) => String::new(),
            };
            files.add(&item.path, content.into_bytes(), item.mode.unwrap_or(mode))?;
        }
        Ok(())
    }

    pub(super) async fn add_projected(&self, projected: &Projected, files: &mut Files) -> Result<(), ContentError> {
        let mode = projected.default_mode;
        for ProjectedSource { config_map, secret, downward_api, service_account_token, others } in &projected.sources {
            if let Some(kind) = others.keys().next() {
                return Err(ContentError::Unsupported(kind.clone()));
            }
            if let Some(source) = config_map {
                self.add_object(source, mode, Keyed::ConfigMap, files).await?;
            }
            if let Some(source) = secret {
                self.add_object(source, mode, Keyed::Secret, files).await?;
            }
            if let Some(source) = downward_api {
                self.add_downward(source, mode, files)?;
            }
            if let Some(source) = service_account_token {
                self.add_token(source, mode.unwrap_or(0o644), files).await?;
            }
        }
        Ok(())
    }

    async fn add_token(&self, source: &TokenSource, mode: u32, files: &mut Files) -> Result<(), ContentError> {
        let metadata = &self.pod.metadata;
        let request = TokenRequest {
            namespace: metadata.namespace.clone(),
            service_account: self.pod.spec.service_account_name.clone().unwrap_or_else(|| "default".into()),
            audiences: source.audience.iter().cloned().collect(),
            expiration_seconds: source.expiration_seconds.unwrap_or(3600),
            pod_name: metadata.name.clone(),
            pod_uid: metadata.uid.clone(),
        };
        let kept = self.tokens.get(self.upstream, &request).await?;
        files.renew_at = files.renew_at.into_iter().chain([kept.renew_at]).min();
        let user = self.pod.spec.only_user();
        // Only a group of the volume's own, or the one user that all containers run as, may read it then.
        let mode = if user.is_some() || self.pod.spec.security_context.fs_group.is_some() { 0o600 } else { mode };
        files.add_of(&source.path, kept.token.into_bytes(), mode, user)
    }
}
