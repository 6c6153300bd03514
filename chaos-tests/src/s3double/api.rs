//! The S3 operations that fusefs uses, over a store of the data path.

use super::{ACCESS_KEY, BUCKET, SECRET_KEY, State};
use fusefs_data_path::{PutMode, StoreError};
use futures::TryStreamExt;
use s3s::{
    S3, S3Request, S3Response, S3Result,
    auth::{S3Auth, SecretKey},
    dto::*,
    s3_error,
};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Keys of one list answer.
const PAGE: usize = 1000;

/// One known key pair.
pub(super) struct Auth;

#[async_trait::async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match access_key {
            ACCESS_KEY => Ok(SecretKey::from(SECRET_KEY)),
            _ => Err(s3_error!(InvalidAccessKeyId, "unknown access key")),
        }
    }
}

pub(super) struct Api(pub Arc<State>);

fn bucket(name: &str) -> S3Result<()> {
    if name == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
}

fn refuse(e: StoreError) -> s3s::S3Error {
    match e {
        StoreError::NotFound => s3_error!(NoSuchKey),
        StoreError::Exists => s3_error!(PreconditionFailed),
        StoreError::Refused(m) => s3_error!(InvalidArgument, "{m}"),
        e => s3_error!(InternalError, "{e}"),
    }
}

fn etag(body: &[u8]) -> ETag {
    ETag::Strong(hex::encode(&Sha256::digest(body)[..16]))
}

#[async_trait::async_trait]
impl S3 for Api {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        bucket(&input.bucket)?;
        let body = match input.body {
            Some(b) => {
                b.try_collect::<Vec<bytes::Bytes>>().await.map_err(|e| s3_error!(IncompleteBody, "{e}"))?.concat()
            }
            None => Vec::new(),
        };
        if input.content_length.is_some_and(|n| n as usize != body.len()) {
            return Err(s3_error!(IncompleteBody));
        }
        let mode = match input.if_none_match {
            Some(c) if c.is_any() => PutMode::IfAbsent,
            Some(_) => return Err(s3_error!(NotImplemented, "If-None-Match with an ETag")),
            None => PutMode::Any,
        };
        let c = &self.0.counters;
        c.add(&c.puts, 1);
        c.add(&c.bytes_in, body.len() as u64);
        let tag = etag(&body);
        let _one_at_a_time = self.0.put_lock.lock().await;
        self.0.store.put(&input.key, body.into(), mode).await.map_err(refuse)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(tag), ..Default::default() }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        bucket(&input.bucket)?;
        let c = &self.0.counters;
        c.add(&c.gets, 1);
        let all = self.0.store.get(&input.key, None).await.map_err(refuse)?;
        let (len, tag) = (all.len() as u64, etag(&all));
        let (body, content_range) = match input.range {
            None => (all, None),
            Some(range) => {
                let r = range.check(len).map_err(|_| s3_error!(InvalidRange))?;
                let text = format!("bytes {}-{}/{len}", r.start, r.end - 1);
                (all.slice(r.start as usize..r.end as usize), Some(text))
            }
        };
        c.add(&c.bytes_out, body.len() as u64);
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(body.len() as i64),
            body: Some(StreamingBlob::from(s3s::Body::from(body))),
            content_range,
            e_tag: Some(tag),
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        bucket(&req.input.bucket)?;
        let all = self.0.store.get(&req.input.key, None).await.map_err(refuse)?;
        let (content_length, e_tag) = (Some(all.len() as i64), Some(etag(&all)));
        Ok(S3Response::new(HeadObjectOutput { content_length, e_tag, ..Default::default() }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        bucket(&req.input.bucket)?;
        let c = &self.0.counters;
        c.add(&c.deletes, 1);
        self.0.store.delete(&[req.input.key]).await.map_err(refuse)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        bucket(&req.input.bucket)?;
        let keys: Vec<String> = req.input.delete.objects.into_iter().map(|o| o.key).collect();
        if keys.len() > PAGE {
            return Err(s3_error!(MalformedXML));
        }
        let c = &self.0.counters;
        c.add(&c.deletes, keys.len() as u64);
        self.0.store.delete(&keys).await.map_err(refuse)?;
        let deleted = keys.into_iter().map(|k| DeletedObject { key: Some(k), ..Default::default() }).collect();
        let deleted = (!req.input.delete.quiet.unwrap_or(false)).then_some(deleted);
        Ok(S3Response::new(DeleteObjectsOutput { deleted, ..Default::default() }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        bucket(&input.bucket)?;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "delimiter"));
        }
        let c = &self.0.counters;
        c.add(&c.lists, 1);
        let max = input.max_keys.map_or(PAGE, |n| n.clamp(0, PAGE as i32) as usize);
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or(input.start_after.clone());
        let mut found = self.0.store.list(&prefix, after.as_deref(), max + 1).await.map_err(refuse)?;
        let more = found.len() > max;
        found.truncate(max);
        let next = if more { found.last().map(|(k, _)| k.clone()) } else { None };
        let contents: Vec<Object> = found
            .into_iter()
            .map(|(k, n)| Object { key: Some(k), size: Some(n as i64), ..Default::default() })
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            max_keys: Some(max as i32),
            key_count: Some(contents.len() as i32),
            is_truncated: Some(more),
            next_continuation_token: next,
            contents: Some(contents),
            ..Default::default()
        }))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }
}
