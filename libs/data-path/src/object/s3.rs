//! S3 and everything that speaks its API. Single attempts: [`super::Retrying`] is the only retry loop.

use super::{ObjectStore, PutMode, StoreError, Timeouts, check_key};
use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        StalledStreamProtectionConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    types::{Delete, ObjectIdentifier},
};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::{http::SharedHttpClient, orchestrator::HttpResponse};
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream, retry::RetryConfig, timeout::TimeoutConfig};
use bytes::Bytes;
use fusefs_types::cluster::{StoreCredentials, StoreRecord};
use std::{error::Error, future::Future, ops::Range, time::Duration};

/// Keys in one DeleteObjects call (limit of the API).
const DELETE_BATCH: usize = 1000;
/// Keys in one ListObjectsV2 answer (limit of the API).
const LIST_PAGE: usize = 1000;

/// One bucket.
pub struct S3Store {
    client: Client,
    bucket: String,
    access_key: String,
    attempt: Duration,
    /// Over TLS the payload need not be hashed for the signature: every frame has its own checksum.
    unsigned_payload: bool,
}

/// The HTTP client of the SDK: rustls with ring for `https`, plain TCP for `http` endpoints.
pub(crate) fn http_client(plain: bool) -> SharedHttpClient {
    let builder = aws_smithy_http_client::Builder::new();
    if plain {
        return builder.build_http();
    }
    builder.tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https()
}

impl S3Store {
    /// Opens the bucket of a record; nothing is sent yet. An endpoint without a scheme is refused.
    pub fn open(r: &StoreRecord, c: &StoreCredentials, t: Timeouts) -> Result<S3Store, StoreError> {
        let plain = r.endpoint.starts_with("http://");
        if !r.endpoint.is_empty() && !plain && !r.endpoint.starts_with("https://") {
            return Err(StoreError::Config(format!(
                "the endpoint {:?} must start with http:// or https://",
                r.endpoint
            )));
        }
        if r.bucket.is_empty() {
            return Err(StoreError::Config("the store has no bucket name".into()));
        }
        if c.access_key.is_empty() {
            return Err(StoreError::Config(
                "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the masters, or name a credential"
                    .into(),
            ));
        }
        let token = (!c.session_token.is_empty()).then(|| c.session_token.clone());
        let region = if r.region.is_empty() { "us-east-1" } else { &r.region };
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new(&c.access_key, &c.secret_key, token, None, "fusefs"))
            .region(Region::new(region.to_string()))
            .force_path_style(r.path_style)
            .http_client(http_client(plain))
            .sleep_impl(aws_sdk_s3::config::SharedAsyncSleep::new(TokioTimer))
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder().connect_timeout(t.connect).operation_attempt_timeout(t.attempt).build(),
            )
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if !r.endpoint.is_empty() {
            config = config.endpoint_url(&r.endpoint);
        }
        Ok(S3Store {
            client: Client::from_conf(config.build()),
            bucket: r.bucket.clone(),
            access_key: c.access_key.clone(),
            attempt: t.attempt,
            unsigned_payload: !plain,
        })
    }

    /// Bounds a whole attempt, the reading of the body included.
    async fn within<T>(&self, f: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        match tokio::time::timeout(self.attempt, f).await {
            Ok(r) => r,
            Err(_) => Err(StoreError::TimedOut(format!("{} s", self.attempt.as_secs()))),
        }
    }

    fn explain<E>(&self, e: SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match e {
            SdkError::ServiceError(s) => {
                self.explain_code(s.raw().status().as_u16(), s.err().code().unwrap_or(""), s.err().message())
            }
            SdkError::TimeoutError(_) => StoreError::TimedOut("no answer".into()),
            SdkError::DispatchFailure(d) => match d.as_connector_error() {
                Some(c) if c.is_timeout() => StoreError::TimedOut(chain(c)),
                Some(c) => StoreError::Unreachable(chain(c)),
                None => StoreError::Unreachable("connection failed".into()),
            },
            SdkError::ResponseError(r) => {
                let status = r.raw().status().as_u16();
                match status {
                    200..=299 => StoreError::Broken("the answer could not be read".into()),
                    _ => self.explain_code(status, "", None),
                }
            }
            SdkError::ConstructionFailure(c) => StoreError::Config(format!(
                "the request could not be built: {}",
                chain(&SdkError::<E, ()>::ConstructionFailure(c))
            )),
            other => StoreError::Broken(chain(&other)),
        }
    }

    fn explain_code(&self, status: u16, code: &str, message: Option<&str>) -> StoreError {
        let text = format!("{} {code} {}", status, message.unwrap_or("")).trim_end().to_string();
        let (bucket, key) = (&self.bucket, &self.access_key);
        match (status, code) {
            (_, "NoSuchBucket") => StoreError::NoBucket(format!("the bucket {bucket:?} does not exist ({text})")),
            (_, "NoSuchKey") => StoreError::NotFound,
            (412, _) | (_, "PreconditionFailed") => StoreError::Exists,
            (409, "ConditionalRequestConflict" | "OperationAborted") => StoreError::Busy(text),
            // The others are versitygw's and Ceph's words for it.
            (_, "InvalidAccessKeyId" | "XAdminUserNotFound" | "NotSignedUp") => {
                StoreError::Denied(format!("the access key {key:?} is unknown to the store ({text})"))
            }
            (_, "SignatureDoesNotMatch") => {
                StoreError::Denied(format!("the secret key of access key {key:?} is wrong ({text})"))
            }
            (_, "RequestTimeTooSkewed") => StoreError::Denied(format!("this machine's clock is wrong ({text})")),
            (_, "ExpiredToken") => StoreError::Denied(format!("the session token has expired ({text})")),
            (404, "" | "NotFound") => StoreError::NotFound,
            (401 | 403, _) => {
                StoreError::Denied(format!("access key {key:?} may not do this in bucket {bucket:?} ({text})"))
            }
            (301 | 307 | 308, _) | (400, "AuthorizationHeaderMalformed") => {
                StoreError::Config(format!("wrong region or endpoint for bucket {bucket:?} ({text})"))
            }
            (408 | 429 | 500..=599, _) | (_, "RequestTimeout") if status != 501 => StoreError::Busy(text),
            _ => StoreError::Refused(text),
        }
    }

    async fn delete_batch(&self, keys: &[String]) -> Result<(), StoreError> {
        if let [key] = keys {
            let call = self.client.delete_object().bucket(&self.bucket).key(key).send();
            return match self.within(async { call.await.map_err(|e| self.explain(e)) }).await {
                Ok(_) | Err(StoreError::NotFound) => Ok(()),
                Err(e) => Err(e),
            };
        }
        let mut ids = Vec::with_capacity(keys.len());
        for key in keys {
            ids.push(ObjectIdentifier::builder().key(key).build().map_err(|e| StoreError::Refused(e.to_string()))?);
        }
        let delete = Delete::builder().set_objects(Some(ids)).quiet(true).build();
        let delete = delete.map_err(|e| StoreError::Refused(e.to_string()))?;
        let call = self.client.delete_objects().bucket(&self.bucket).delete(delete).send();
        let done = self.within(async { call.await.map_err(|e| self.explain(e)) }).await?;
        for e in done.errors() {
            let code = e.code().unwrap_or("");
            if code != "NoSuchKey" {
                return Err(self.explain_code(if code == "AccessDenied" { 403 } else { 500 }, code, e.message()));
            }
        }
        Ok(())
    }
}

/// Timer of the SDK on tokio's clock.
#[derive(Debug)]
struct TokioTimer;

impl aws_sdk_s3::config::AsyncSleep for TokioTimer {
    fn sleep(&self, duration: Duration) -> aws_sdk_s3::config::Sleep {
        aws_sdk_s3::config::Sleep::new(tokio::time::sleep_until(tokio::time::Instant::now() + duration))
    }
}

/// An error with its causes, which the SDK hides behind `source`.
fn chain(e: &dyn Error) -> String {
    let mut text = e.to_string();
    let mut at = e.source();
    while let Some(s) = at {
        let s_text = s.to_string();
        if !text.ends_with(&s_text) {
            text.push_str(": ");
            text.push_str(&s_text);
        }
        at = s.source();
    }
    text
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        check_key(key)?;
        let mut call =
            self.client.put_object().bucket(&self.bucket).key(key).body(ByteStream::new(SdkBody::from(body)));
        if mode == PutMode::IfAbsent {
            call = call.if_none_match("*");
        }
        let mut call = call.customize();
        if self.unsigned_payload {
            call = call.disable_payload_signing();
        }
        match self.within(async { call.send().await.map_err(|e| self.explain(e)) }).await {
            Ok(_) => Ok(()),
            Err(StoreError::NotFound) => {
                Err(StoreError::NoBucket(format!("the bucket {:?} does not exist", self.bucket)))
            }
            Err(e) => Err(e),
        }
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        check_key(key)?;
        let mut call = self.client.get_object().bucket(&self.bucket).key(key);
        if let Some(r) = &range {
            if r.is_empty() {
                return Ok(Bytes::new());
            }
            call = call.range(format!("bytes={}-{}", r.start, r.end - 1));
        }
        self.within(async {
            let answer = match call.send().await {
                Ok(a) => a,
                Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 416) => return Ok(Bytes::new()),
                Err(e) => return Err(self.explain(e)),
            };
            let body = answer.body.collect().await.map_err(|e| StoreError::Broken(chain(&e)))?.into_bytes();
            // A server that ignores Range sends the whole object.
            match (&range, answer.content_range) {
                (Some(r), None) => {
                    let r = super::clip(&Some(r.clone()), body.len() as u64);
                    Ok(body.slice(r.start as usize..r.end as usize))
                }
                _ => Ok(body),
            }
        })
        .await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            check_key(key)?;
        }
        for batch in keys.chunks(DELETE_BATCH) {
            self.delete_batch(batch).await?;
        }
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        let mut found: Vec<(String, u64)> = Vec::new();
        let mut after = after.map(str::to_string);
        while found.len() < limit {
            let page = LIST_PAGE.min(limit - found.len());
            let call = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(prefix)
                .set_start_after(after.clone())
                .max_keys(page as i32)
                .send();
            let answer = self.within(async { call.await.map_err(|e| self.explain(e)) }).await;
            let answer = answer.map_err(|e| match e {
                StoreError::NotFound => StoreError::NoBucket(format!("the bucket {:?} does not exist", self.bucket)),
                e => e,
            })?;
            for o in answer.contents() {
                let Some(key) = o.key() else { continue };
                found.push((key.to_string(), o.size().unwrap_or(0).max(0) as u64));
            }
            let last = found.last().map(|(k, _)| k.clone());
            if !answer.is_truncated().unwrap_or(false) || last == after {
                break;
            }
            after = last;
        }
        found.truncate(limit);
        Ok(found)
    }
}
