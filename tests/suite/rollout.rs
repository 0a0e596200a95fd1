//! Deployments: updates that nobody notices, the way back, and other sizes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use e2e::{Space, succeeded, until};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: rolling}
spec:
  selector: {app: my-nginx}
  ports: [{port: 80}]
";

/// Asks the service all the while the deployment rolls from one image to the next.
pub fn rolling_update(space: &Space<'_>) -> Result<()> {
    let deployment = space.nginx()?;
    space.apply_text(SERVICE)?;
    let address = space.get(&["service", "rolling"], "{.spec.clusterIP}")?;
    let url = format!("http://{address}/");
    until("the service answers", || Ok(space.cluster.node().fetch(&url).is_ok_and(|page| page.contains("1.14.2"))))?;
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let reason = std::sync::Mutex::new(String::new());
    let rolled = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = space.cluster.node().fetch(&url) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        *reason.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = format!("{error:#}");
                    }
                }
            });
        }
        let rolled = roll(space, deployment)
            .and_then(|()| until("only new pods are left", || Ok(space.count("pods", "app=my-nginx")? == 3)));
        stop.store(true, Ordering::Relaxed);
        rolled
    });
    rolled?;
    let (asked, failed) = (asked.into_inner(), failed.into_inner());
    ensure!(asked > 20, "only {asked} requests were made");
    ensure!(
        failed == 0,
        "{failed} of {asked} requests failed while it rolled, the last: {}",
        reason.into_inner().unwrap_or_default()
    );
    let page = space.cluster.node().fetch(&url)?;
    ensure!(page.contains("1.16.1"), "the new page is not there: {page}");
    Ok(())
}

fn roll(space: &Space<'_>, deployment: &str) -> Result<()> {
    space.kubectl(&["set", "image", deployment, "nginx=nginx:1.16.1"])?;
    space.kubectl(&["rollout", "status", deployment, "--timeout=90s"]).map(drop)
}

pub fn rollback(space: &Space<'_>) -> Result<()> {
    let deployment = space.nginx()?;
    roll(space, deployment)?;
    let history = space.kubectl(&["rollout", "history", deployment])?;
    ensure!(history.lines().filter(|line| line.starts_with(['1', '2'])).count() == 2, "{history}");
    space.kubectl(&["rollout", "undo", deployment, "--to-revision=1"])?;
    space.kubectl(&["rollout", "status", deployment, "--timeout=90s"])?;
    let image = space.get(&[deployment], "{.spec.template.spec.containers[0].image}")?;
    ensure!(image == "nginx:1.14.2", "{image}");
    let history = space.kubectl(&["rollout", "history", deployment])?;
    ensure!(
        history.lines().any(|line| line.starts_with('3')) && !history.lines().any(|line| line.starts_with('1')),
        "{history}"
    );
    Ok(())
}

pub fn scale_and_edit(space: &Space<'_>) -> Result<()> {
    let deployment = space.nginx()?;
    space.kubectl(&["scale", deployment, "--replicas=5"])?;
    until("five replicas are ready", || Ok(space.get(&[deployment], "{.status.readyReplicas}")? == "5"))?;
    let editor = [("KUBE_EDITOR", "sed -i 's/replicas: 5/replicas: 2/'")];
    succeeded(space.kubectl_with(&["edit", deployment], "", &editor)?, "kubectl edit")?;
    until("two replicas are left", || Ok(space.count("pods", "app=my-nginx")? == 2))?;
    space.kubectl(&["scale", deployment, "--replicas=3"])?;
    space.kubectl(&["rollout", "status", deployment, "--timeout=60s"]).map(drop)
}
