//! `fusefs store`: object stores of the cluster.

use crate::{
    args::StoreCommand,
    cluster::Cluster,
    show::{self, json},
};
use anyhow::{Context, Result, bail, ensure};
use fusefs_types::{
    StoreId,
    cluster::{MasterCall, MasterReply, StoreKind, StoreRecord},
};

/// Executes the command.
pub async fn run(command: StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Add { name, url, region, credential, virtual_hosted, cluster, output } => {
            let record = StoreRecord { name, region, credential, path_style: !virtual_hosted, ..parse_url(&url)? };
            let reply = Cluster::new(&cluster)?.call(MasterCall::AddStore(record)).await?;
            let MasterReply::Store(store) = reply else { bail!("unexpected answer") };
            if output.json {
                return json(&show::store(&store));
            }
            println!("store {} added", store.name);
            show::print_probe(&store.probe);
        }
        StoreCommand::List { cluster, output } => {
            let stores = list(&Cluster::new(&cluster)?).await?;
            if output.json {
                return json(&stores.iter().map(show::store).collect::<Vec<_>>());
            }
            println!("{:<16}{:<8}{:<12}WHERE", "NAME", "KIND", "PROBE");
            for s in &stores {
                let ok = s.probe.iter().all(|c| c.ok || !c.required);
                println!(
                    "{:<16}{:<8}{:<12}{}",
                    s.name,
                    show::kind(s.kind),
                    if ok { "ok" } else { "FAILED" },
                    show::place(s)
                );
            }
        }
        StoreCommand::Show { name, cluster, output } => {
            let stores = list(&Cluster::new(&cluster)?).await?;
            let store = stores.into_iter().find(|s| s.name == name);
            print_one(
                &store.with_context(|| format!("no store is named {name}; see: fusefs store list"))?,
                output.json,
            )?;
        }
        StoreCommand::Probe { name, cluster, output } => {
            let reply = Cluster::new(&cluster)?.call(MasterCall::ProbeStore(name)).await?;
            let MasterReply::Store(store) = reply else { bail!("unexpected answer") };
            print_one(&store, output.json)?;
            ensure!(store.probe.iter().all(|c| c.ok || !c.required), "a required check failed");
        }
    }
    Ok(())
}

/// All stores.
pub async fn list(cluster: &Cluster) -> Result<Vec<StoreRecord>> {
    match cluster.call(MasterCall::ListStores).await? {
        MasterReply::Stores(s) => Ok(s),
        _ => bail!("unexpected answer"),
    }
}

fn print_one(store: &StoreRecord, as_json: bool) -> Result<()> {
    if as_json {
        return json(&show::store(store));
    }
    println!(
        "name:        {}\nkind:        {}\nwhere:       {}",
        store.name,
        show::kind(store.kind),
        show::place(store)
    );
    println!(
        "region:      {}\ncredential:  {}",
        store.region,
        if store.credential.is_empty() { "(the masters' standard chain)" } else { &store.credential }
    );
    show::print_probe(&store.probe);
    Ok(())
}

/// `http(s)://HOST[:PORT]/BUCKET[/PREFIX]`, `s3://BUCKET[/PREFIX]` or an absolute path.
pub fn parse_url(url: &str) -> Result<StoreRecord> {
    let empty = StoreRecord {
        id: StoreId(0),
        name: String::new(),
        kind: StoreKind::S3,
        endpoint: String::new(),
        region: String::new(),
        bucket: String::new(),
        prefix: String::new(),
        path_style: true,
        credential: String::new(),
        probe: Vec::new(),
    };
    if url.starts_with('/') {
        return Ok(StoreRecord { kind: StoreKind::Dir, endpoint: url.to_owned(), ..empty });
    }
    let (scheme, rest) = url
        .split_once("://")
        .with_context(|| format!("`{url}` is neither an absolute path nor a URL such as https://HOST/BUCKET"))?;
    let (host, path) = match scheme {
        "http" | "https" => rest.split_once('/').unwrap_or((rest, "")),
        "s3" => ("", rest),
        other => bail!("unknown scheme {other}:// in `{url}`; use http://, https://, s3:// or an absolute path"),
    };
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    ensure!(
        !bucket.is_empty(),
        "`{url}` names no bucket; use {scheme}://{}BUCKET[/PREFIX]",
        if host.is_empty() { String::new() } else { format!("{host}/") }
    );
    ensure!(!host.contains('@'), "`{url}` contains credentials; give them to the masters by --credential NAME instead");
    let endpoint = if host.is_empty() { String::new() } else { format!("{scheme}://{host}") };
    Ok(StoreRecord { endpoint, bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned(), ..empty })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_endpoint_bucket_and_prefix() {
        let s = parse_url("http://127.0.0.1:9000/bucket/a/b/").unwrap();
        assert_eq!(
            (s.endpoint.as_str(), s.bucket.as_str(), s.prefix.as_str()),
            ("http://127.0.0.1:9000", "bucket", "a/b")
        );
        let s = parse_url("s3://bucket").unwrap();
        assert_eq!((s.endpoint.as_str(), s.bucket.as_str()), ("", "bucket"));
        assert_eq!(parse_url("/data").unwrap().kind, StoreKind::Dir);
        for bad in ["", "bucket", "ftp://h/b", "http://host", "http://key:secret@host/b"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }
}
