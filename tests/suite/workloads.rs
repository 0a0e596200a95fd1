//! Jobs, CronJobs, DaemonSets and StatefulSets with real containers.

use anyhow::{Result, ensure};
use e2e::{Space, until};

const JOBS: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: indexed}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: 'busybox:latest', command: [sh, -c, 'echo index $JOB_COMPLETION_INDEX on $(hostname)']}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: refused}
spec:
  backoffLimit: 3
  podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]}
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: 'busybox:latest', command: [sh, -c, 'exit 42']}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: brief}
spec:
  ttlSecondsAfterFinished: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: 'busybox:latest', command: ['true']}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: suspended}
spec:
  suspend: true
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: 'busybox:latest', command: ['true']}]
";

pub fn jobs(space: &Space<'_>) -> Result<()> {
    let said = space.apply_text(JOBS)?;
    ensure!(!said.contains("not acted on"), "{said}");
    space.kubectl(&["wait", "--for=condition=Complete", "job/indexed", "--timeout=60s"])?;
    let logs = space.kubectl(&["logs", "-l", "batch.kubernetes.io/job-name=indexed", "--tail=-1"])?;
    for index in 0..3 {
        ensure!(logs.contains(&format!("index {index} on indexed-{index}")), "{logs}");
    }
    let status = space
        .get(&["job", "indexed"], "{.status.succeeded} {.status.completedIndexes} {.status.uncountedTerminatedPods}")?;
    ensure!(status == "3 0-2 {}", "{status}");
    ensure!(space.kubectl(&["get", "jobs"])?.contains("3/3"), "columns");
    let told = space.kubectl(&["describe", "job", "indexed"])?;
    ensure!(told.contains("Job completed") && told.contains("SuccessfulCreate"), "{told}");
    space.kubectl(&["wait", "--for=condition=Failed", "job/refused", "--timeout=60s"])?;
    let why = space.get(&["job", "refused"], "{.status.conditions[?(@.type==\"Failed\")].message}")?;
    ensure!(why.contains("failed with exit code 42 matching FailJob rule at index 0"), "{why}");
    until("a Job that may not stay is gone", || {
        let left = space.kubectl(&["get", "jobs,pods", "-l", "batch.kubernetes.io/job-name=brief", "-o", "name"])?;
        Ok(left.is_empty())
    })?;
    space.kubectl(&["wait", "--for=condition=Suspended", "job/suspended", "--timeout=30s"])?;
    ensure!(space.count("pods", "batch.kubernetes.io/job-name=suspended")? == 0, "a suspended Job has pods");
    space.kubectl(&["patch", "job", "suspended", "-p", "{\"spec\":{\"suspend\":false}}"])?;
    space.kubectl(&["wait", "--for=condition=Complete", "job/suspended", "--timeout=60s"])?;
    space.kubectl(&["delete", "job", "indexed", "--timeout=30s"])?;
    until(
        "the pods of a deleted Job are gone",
        || Ok(space.count("pods", "batch.kubernetes.io/job-name=indexed")? == 0),
    )
}

const CRON_JOB: &str = "
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: '* * * * *'
  timeZone: Europe/Berlin
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: c, image: 'busybox:latest', command: [date]}]
";

pub fn cron_jobs(space: &Space<'_>) -> Result<()> {
    space.apply_text(CRON_JOB)?;
    space.kubectl(&["create", "job", "by-hand", "--from=cronjob/tick"])?;
    space.kubectl(&["wait", "--for=condition=Complete", "job/by-hand", "--timeout=60s"])?;
    // The minute may have just begun.
    until("its time has come", || Ok(!space.get(&["cronjob", "tick"], "{.status.lastScheduleTime}")?.is_empty()))?;
    space.kubectl(&["patch", "cronjob", "tick", "-p", "{\"spec\":{\"suspend\":true}}"])?;
    until("its Job is done and seen", || {
        let status = space.get(&["cronjob", "tick"], "{.status.lastSuccessfulTime} {.status.active}")?;
        Ok(status.len() > 1 && status.ends_with(' '))
    })?;
    let names = space.kubectl(&["get", "jobs", "-o", "name"])?;
    let minutes = names.lines().filter_map(|name| name.strip_prefix("job.batch/tick-")?.parse::<u64>().ok());
    ensure!(minutes.count() >= 1, "{names}");
    let told = space.kubectl(&["describe", "cronjob", "tick"])?;
    ensure!(told.contains("Created job tick-") && told.contains("Saw completed job: tick-"), "{told}");
    let wrong =
        space.kubectl_fails(&["create", "cronjob", "wrong", "--image=busybox:latest", "--schedule=61 * * * *"])?;
    ensure!(wrong.contains("end of range (61) above maximum (59): 61"), "{wrong}");
    Ok(())
}

const DAEMON_SET: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: 'busybox:latest', command: [sleep, '1000'], env: [{name: ROUND, value: first}]}]
";

pub fn daemons(space: &Space<'_>) -> Result<()> {
    let rolled = || space.kubectl(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let round = || space.get(&["pods", "-l", "app=agent"], "{.items[*].spec.containers[0].env[0].value}");
    space.apply_text(DAEMON_SET)?;
    rolled()?;
    ensure!(round()? == "first", "{}", round()?);
    let node = space.get(&["pods", "-l", "app=agent"], "{.items[0].spec.nodeName}")?;
    ensure!(node == space.cluster.node().name, "on {node}");
    space.kubectl(&["set", "env", "daemonset/agent", "ROUND=second"])?;
    rolled()?;
    ensure!(round()? == "second", "{}", round()?);
    let history = space.kubectl(&["rollout", "history", "daemonset/agent"])?;
    ensure!(history.lines().filter(|line| line.starts_with(['1', '2'])).count() == 2, "{history}");
    space.kubectl(&["rollout", "undo", "daemonset/agent"])?;
    rolled()?;
    ensure!(round()? == "first", "{}", round()?);
    // The new one comes first.
    let surge = "{\"spec\":{\"updateStrategy\":{\"rollingUpdate\":{\"maxUnavailable\":0,\"maxSurge\":1}}}}";
    space.kubectl(&["patch", "daemonset", "agent", "-p", surge])?;
    space.kubectl(&["set", "env", "daemonset/agent", "ROUND=third"])?;
    rolled()?;
    until("only the new pod is left", || Ok(round()? == "third"))?;
    let shown = space.kubectl(&["get", "daemonset", "agent", "--no-headers"])?;
    ensure!(shown.split_whitespace().skip(1).take(5).all(|count| count == "1"), "{shown}");
    space.kubectl(&["delete", "daemonset", "agent", "--timeout=30s"])?;
    until("its pods are gone", || Ok(space.count("pods", "app=agent")? == 0))
}

const STATEFUL_SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: peers
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: 'busybox:latest', command: [sleep, '1000'], env: [{name: ROUND, value: first}]}]
";

const CLAIMING: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: claiming}
spec:
  serviceName: peers
  selector: {matchLabels: {app: claiming}}
  template:
    metadata: {labels: {app: claiming}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: 'busybox:latest', command: [sleep, '1000'], volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}]
";

pub fn stateful(space: &Space<'_>) -> Result<()> {
    let rolled = || space.kubectl(&["rollout", "status", "statefulset/web", "--timeout=90s"]);
    let pods = || {
        space.get(
            &["pods", "-l", "app=web"],
            "{range .items[*]}{.metadata.name}={.spec.containers[0].env[0].value} {end}",
        )
    };
    space.apply_text(STATEFUL_SET)?;
    rolled()?;
    ensure!(pods()? == "web-0=first web-1=first ", "{}", pods()?);
    // They find each other by name.
    let name = format!("web-1.peers.{}.svc.cluster.local", space.namespace());
    let address = space.get(&["pod", "web-1"], "{.status.podIP}")?;
    until("one finds the other by its name", || {
        Ok(space.kubectl(&["exec", "web-0", "--", "nslookup", &name])?.contains(&address))
    })?;
    ensure!(space.kubectl(&["exec", "web-1", "--", "hostname"])?.trim() == "web-1", "the host's name");
    space.kubectl(&["set", "env", "statefulset/web", "ROUND=second"])?;
    rolled()?;
    ensure!(pods()? == "web-0=second web-1=second ", "{}", pods()?);
    space.kubectl(&["rollout", "undo", "statefulset/web"])?;
    rolled()?;
    ensure!(pods()? == "web-0=first web-1=first ", "{}", pods()?);
    let partition = "{\"spec\":{\"updateStrategy\":{\"rollingUpdate\":{\"partition\":1}}}}";
    space.kubectl(&["patch", "statefulset", "web", "-p", partition])?;
    space.kubectl(&["set", "env", "statefulset/web", "ROUND=third"])?;
    rolled()?;
    ensure!(pods()? == "web-0=first web-1=third ", "{}", pods()?);
    space.kubectl(&["scale", "statefulset", "web", "--replicas=3"])?;
    until("three are ready", || Ok(space.get(&["statefulset", "web"], "{.status.readyReplicas}")? == "3"))?;
    space.kubectl(&["scale", "statefulset", "web", "--replicas=1"])?;
    until("the last ones went", || Ok(pods()? == "web-0=first "))?;
    // Its claim is made, and waits; so does its pod, and says for what.
    space.apply_text(CLAIMING)?;
    until("a pod waits for its claim", || {
        let claim = space.get(&["pvc", "data-claiming-0"], "{.status.phase}")?;
        let told = space.kubectl(&["describe", "pod", "claiming-0"])?;
        Ok(claim == "Pending" && told.contains("persistentVolumeClaim") && told.contains("FailedMount"))
    })
}
