//! A pod that is none of ours, with the masters' address and without a token, gets nothing. With the token it would.

use super::suite::PATIENCE;
use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::kube::{
    cluster::{APPS, Cluster, RELEASE, text, until},
    deploy::TOKEN,
};
use serde_json::{Value, json};

/// What somebody without a token is told.
const REFUSED: &str = "no valid cluster token";
const POD: &str = "foreign";
const KEY: &str = "foreign-key";
/// The one that has the token.
const CONTROL: &str = "control";

/// `host:port` of a master's service.
fn master(c: &Cluster) -> Result<String> {
    let services = c.list("services", Some(RELEASE), "app.kubernetes.io/component=master")?;
    let own = services.iter().find(|s| s["spec"]["clusterIP"].as_str().is_some_and(|ip| ip != "None"));
    let spec = &own.context("service of a master")?["spec"];
    Ok(format!("{}:{}", text(&spec["clusterIP"]), spec["ports"][0]["port"]))
}

/// Lists, a session with its store's credentials, and a store's access: each refused in words.
pub fn refused(c: &Cluster, volume: &str) -> Result<String> {
    let asked: [(&str, &[&str]); 5] = [
        ("volumes", &["volume", "list"]),
        ("stores", &["store", "list"]),
        ("session", &["mount", "--no-keeper", volume, "/tmp"]),
        ("check", &["fsck", volume]),
        (CONTROL, &["volume", "list"]),
    ];
    let address = master(c)?;
    let container = |(name, args): &(&str, &[&str])| {
        let token = json!({"name": "FUSEFS_TOKEN_FILE", "value": "/token/token"});
        let address = json!({"name": "FUSEFS_MASTER", "value": address});
        let control = *name == CONTROL;
        json!({
            "name": name, "image": c.settings.image, "imagePullPolicy": "IfNotPresent", "args": args,
            "env": if control { vec![address, token] } else { vec![address] },
            "volumeMounts": if control { json!([{"name": "token", "mountPath": "/token"}]) } else { json!([]) },
            "securityContext": {"runAsUser": 0},
        })
    };
    c.apply_json(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEY, "namespace": APPS}, "stringData": {"token": TOKEN},
    }))?;
    c.apply_json(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "namespace": APPS, "labels": {"app": "load"}},
        "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "nodeSelector": {"kubernetes.io/hostname": c.nodes[1]},
            "volumes": [{"name": "token", "secret": {"secretName": KEY}}],
            "containers": asked.iter().map(container).collect::<Vec<_>>(),
        },
    }))?;
    let mut ended = vec![];
    until("answers to a foreign pod", PATIENCE, || {
        let pod = c.get("pod", APPS, POD)?.context("foreign pod")?;
        ended = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(ended.len() == asked.len() && ended.iter().all(|e| e["state"]["terminated"].is_object()))
    })?;
    for one in &ended {
        judge(c, one)?;
    }
    c.delete("pod", APPS, POD)?;
    c.delete("secret", APPS, KEY)?;
    Ok(format!("{} questions refused, the same with the token answered", asked.len() - 1))
}

fn judge(c: &Cluster, ended: &Value) -> Result<()> {
    let name = text(&ended["name"]);
    let code = ended["state"]["terminated"]["exitCode"].as_i64().context("exit code")?;
    let said = c.run(&["logs", "-n", APPS, POD, "-c", &name])?;
    if name == CONTROL {
        ensure!(code == 0, "with the token the masters said: {said}");
    } else {
        ensure!(code != 0 && said.contains(REFUSED), "{name} without a token ended with {code}: {said}");
    }
    Ok(())
}
