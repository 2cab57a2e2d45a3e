//! The deployment matches the service: the ports, paths, variables and times in `deploy/kubernetes/`, `compose.yaml`
//! and the `Dockerfile` are those of its configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::app::TestApp;
use crate::configuration::explained;
use crate::process::Launch;

const NAME: &str = env!("CARGO_PKG_NAME");
const FOLDER: &str = "deploy/kubernetes";
/// For closing what is left and writing the last log lines, besides the three configured phases of the shutdown.
const CLOSING: Duration = Duration::from_secs(2);

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn yaml(name: &str) -> Value {
    yaml_serde::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All manifests in a folder and its subfolders, with their paths.
fn manifests(folder: &str) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name of text");
        let path = format!("{folder}/{name}");
        match name.rsplit_once('.') {
            Some((_, "yaml")) => found.push((PathBuf::from(&path), yaml(&path))),
            Some(_) => {}
            None => found.extend(manifests(&path)),
        }
    }
    found
}

/// The service's own manifest of this kind.
fn manifest(kind: &str) -> Value {
    let mut all = manifests(FOLDER).into_iter().map(|(_, manifest)| manifest);
    all.find(|one| one["kind"] == kind && one["metadata"]["name"] == NAME)
        .unwrap_or_else(|| panic!("no {kind}"))
}

/// The pod templates of all manifests.
fn templates() -> Vec<Value> {
    let mut all: Vec<Value> =
        manifests(FOLDER).iter().map(|(_, manifest)| manifest["spec"]["template"].clone()).collect();
    all.retain(|template| !template.is_null());
    assert!(!all.is_empty(), "no pods");
    all
}

fn container() -> Value {
    manifest("Deployment")["spec"]["template"]["spec"]["containers"][0].clone()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn seconds(value: &Value) -> Duration {
    Duration::from_secs(number(value))
}

fn duration(text: &str) -> Duration {
    humantime_serde::re::humantime::parse_duration(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The variables that a file such as `.env` sets and, if `shown`, those that it only shows in a comment.
fn variables(name: &str, shown: bool) -> BTreeMap<String, String> {
    let text = read(name);
    let lines = text.lines().map(|line| line.strip_prefix('#').filter(|_| shown).unwrap_or(line));
    let lines = lines.filter_map(|line| line.split_once('='));
    let is_name = |name: &str| !name.is_empty() && !name.contains(|c: char| c.is_lowercase() || c == ' ');
    lines.filter(|(name, _)| is_name(name)).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The variables that a container gets and, if `shown`, those that it could get. Secrets have the values that
/// `.env.example` shows.
fn environment(container: &Value, shown: bool) -> BTreeMap<String, String> {
    let examples = variables(".env.example", true);
    let mut all = BTreeMap::new();
    for source in list(&container["envFrom"]) {
        let settings = &yaml(&format!("{FOLDER}/kustomization.yaml"))["configMapGenerator"][0];
        assert_eq!(source["configMapRef"]["name"], settings["name"], "it is made of the settings");
        all.extend(variables(&format!("{FOLDER}/{}", text(&settings["envs"][0])), shown));
    }
    for variable in list(&container["env"]) {
        let (name, reference) = (text(&variable["name"]), &variable["valueFrom"]["secretKeyRef"]);
        assert!(variable["value"].is_null() && reference["name"] == NAME, "{name} is no secret: {variable}");
        assert_eq!(reference["key"], name, "a secret has one name everywhere");
        let required = variables(".env.example", false).contains_key(name);
        assert_eq!(
            reference["optional"] != true,
            required,
            "{name}: optional where .env.example has it in a comment"
        );
        let value = examples.get(name).unwrap_or_else(|| panic!("{name} is not in .env.example"));
        all.insert(name.to_owned(), value.clone());
    }
    all
}

/// What `check-config` prints in such a container: each key with its value and source.
async fn configured(variables: &BTreeMap<String, String>) -> BTreeMap<String, (String, String)> {
    // The webhook's receiver in `.env.example` is on the developer's own machine.
    let mut launch = Launch::bare().set(&[("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true")]);
    for (name, value) in variables {
        launch = launch.set(&[(name, value)]);
    }
    let line = |line: &str| {
        let (setting, source) = line.split_once("  # ")?;
        let (key, value) = setting.split_once(" = ")?;
        Some((key.to_owned(), (value.trim_matches('"').to_owned(), source.to_owned())))
    };
    explained(launch).await.lines().filter_map(line).collect()
}

/// The configuration of the replicas.
async fn settings() -> BTreeMap<String, String> {
    let configured = configured(&environment(&container(), false)).await;
    configured.into_iter().map(|(key, (value, _))| (key, value)).collect()
}

#[tokio::test]
async fn pods_are_given_all_that_they_need_and_no_unknown_variable() {
    for template in templates() {
        let variables = environment(&template["spec"]["containers"][0], true);
        let configured = configured(&variables).await;
        for name in variables.keys().filter(|name| *name != "APP_ENV") {
            let used = configured.values().any(|(_, source)| *source == format!("environment {name}"));
            assert!(used, "{name} is no setting: {configured:#?}");
        }
    }
}

#[tokio::test]
async fn all_agree_on_the_ports() {
    let settings = settings().await;
    let own = [("admin", settings["admin.port"].as_str()), ("http", settings["http.port"].as_str())];
    let container = container();
    let ports: BTreeMap<&str, String> = list(&container["ports"])
        .iter()
        .map(|port| (text(&port["name"]), number(&port["containerPort"]).to_string()))
        .collect();
    assert_eq!(ports, own.map(|(name, port)| (name, port.to_owned())).into());
    let exposed = format!("\nEXPOSE {} {}\n", settings["http.port"], settings["admin.port"]);
    assert!(read("Dockerfile").contains(&exposed), "Dockerfile: no {exposed}");
    let services = yaml("compose.yaml")["services"].clone();
    let published = &services["service"]["ports"];
    for (_, port) in own {
        let published = list(published).iter().any(|one| text(one).ends_with(&format!(":{port}")));
        assert!(published, "compose.yaml: no {port}");
    }

    let all_published = services.as_object().into_iter().flatten().flat_map(|(_, one)| list(&one["ports"]));
    for port in all_published {
        assert!(text(port).starts_with("127.0.0.1:"), "compose.yaml: {port} is open to others");
    }

    let service = manifest("Service");
    let of_service = list(&service["spec"]["ports"]).iter().map(|port| {
        assert_eq!(port["name"], port["targetPort"], "a port of the Service leads to the one of its name");
        (text(&port["name"]), number(&port["port"]))
    });
    assert_eq!(of_service.collect::<Vec<_>>(), [("http", 80), ("admin", 9090)]);
    for endpoint in list(&manifest("ServiceMonitor")["spec"]["endpoints"]) {
        assert_eq!(endpoint["port"], "admin");
    }
    let policy = manifest("NetworkPolicy");
    let rules = list(&policy["spec"]["ingress"]);
    let let_in: Vec<&str> =
        rules.iter().flat_map(|rule| list(&rule["ports"])).map(|one| text(&one["port"])).collect();
    assert_eq!(let_in, ["http", "admin"], "what is let in");
    let admin =
        rules.iter().find(|rule| rule["ports"][0]["port"] == "admin").expect("a rule for the admin port");
    let [from] = list(&admin["from"]) else { panic!("the admin port is open to all: {admin}") };
    let namespace = &from["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"];
    assert!(namespace.is_string(), "the admin port is open to all");
    assert_eq!(rules.len(), 2, "a rule without ports would let in everything");
}

#[tokio::test]
async fn probes_and_scrapes_ask_what_is_served() {
    let app = TestApp::spawn(&[]).await;
    let container = container();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let ask = &container[probe]["httpGet"];
        assert_eq!(ask["port"], "admin", "{probe}");
        assert_eq!(app.admin(text(&ask["path"])).await.status, 200, "{probe}");
    }
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health/live", "it asks no dependency");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/health/ready");
    let monitor = manifest("ServiceMonitor");
    let metrics = app.admin(text(&monitor["spec"]["endpoints"][0]["path"])).await;
    let version = concat!("service_info{version=\"", env!("CARGO_PKG_VERSION"), "\",");
    assert!(metrics.body.contains(version), "{metrics:?}");
}

#[tokio::test]
async fn nobody_kills_what_the_shutdown_would_save() {
    let settings = settings().await;
    let phases = ["shutdown.grace_delay", "shutdown.drain_timeout", "shutdown.flush_timeout"];
    let shutdown = phases.iter().map(|key| duration(&settings[*key])).sum::<Duration>() + CLOSING;
    let deployment = manifest("Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let given = seconds(&pod["terminationGracePeriodSeconds"]);
    assert!(given > shutdown, "Kubernetes kills after {given:?}, stopping takes up to {shutdown:?}");
    let compose = yaml("compose.yaml");
    let given = duration(text(&compose["services"]["service"]["stop_grace_period"]));
    assert!(given > shutdown, "Compose kills after {given:?}, stopping takes up to {shutdown:?}");
}

/// How long a probe has to keep failing until it counts.
fn patience(probe: &Value) -> Duration {
    let (period, timeout) = (seconds(&probe["periodSeconds"]), seconds(&probe["timeoutSeconds"]));
    assert!(timeout <= period, "one probe would overlap the next: {probe}");
    period * u32::try_from(number(&probe["failureThreshold"])).expect("a small number")
}

#[tokio::test]
async fn probes_fit_the_lifecycle() {
    let settings = settings().await;
    let setting = |key: &str| duration(&settings[key]);
    let container = container();
    let [startup, liveness, readiness] =
        ["startupProbe", "livenessProbe", "readinessProbe"].map(|name| patience(&container[name]));
    assert!(
        startup > setting("health.startup_timeout"),
        "a start is given up before it says what is missing"
    );
    assert!(
        readiness + Duration::from_secs(1) < setting("shutdown.grace_delay"),
        "the drain begins before those that follow readiness have noticed"
    );
    let period = seconds(&container["readinessProbe"]["periodSeconds"]);
    assert!(period <= setting("health.interval"), "what the prober saw waits for a probe");
    assert!(liveness > readiness * 2, "a replica is ended while it could still be taken out of the Service");
    let deployment = manifest("Deployment");
    let progress = seconds(&deployment["spec"]["progressDeadlineSeconds"]);
    let node = Duration::from_mins(5);
    assert!(progress > node + startup, "a rollout is given up before a replica is, on a node that is added");
    assert_eq!(
        deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0,
        "fewer serve while it goes on"
    );
    assert_eq!(manifest("PodDisruptionBudget")["spec"]["maxUnavailable"], 1, "no node could be drained");
    assert!(number(&container["livenessProbe"]["failureThreshold"]) >= 3, "one slow answer ends a replica");
    assert!(container["resources"]["requests"]["cpu"].is_string(), "or it would be the limit");
}

/// Parses mebibytes from a quantity such as `512Mi`.
fn mebibytes(value: &Value) -> u64 {
    let number = text(value).strip_suffix("Mi").and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no mebibytes: {value}"))
}

#[tokio::test]
async fn what_clients_may_send_fits_into_memory() {
    let settings = settings().await;
    let in_flight: u64 = settings["http.max_in_flight"].parse().expect("a number");
    let body: bytesize::ByteSize = settings["http.max_body_size"].parse().expect("a size");
    let cached: u64 = settings["cache.capacity"].parse().expect("a number");
    let memory = mebibytes(&container()["resources"]["limits"]["memory"]) << 20;
    let connections: u64 = settings["http.max_connections"].parse().expect("a number");
    // On top of request bodies: connections of hostile clients, cached tasks, and long responses that nobody reads.
    let most = in_flight * body.as_u64() + connections * (350 << 10) + cached * 2048 + (128 << 20);
    assert!(most < memory, "{most} bytes are more than {memory}");
}

#[test]
fn there_are_as_many_replicas_as_know_of_each_other() {
    let scaler = manifest("HorizontalPodAutoscaler");
    let replicas = [number(&scaler["spec"]["minReplicas"]), number(&scaler["spec"]["maxReplicas"])];
    let fit = replicas == [1, 1];
    //@ if postgres
    let fit = !fit && (1..=replicas[1]).contains(&replicas[0]);
    //@ end
    assert!(fit, "{replicas:?}");
}
//@ if postgres

#[tokio::test]
async fn replicas_do_not_use_up_the_database() {
    let settings = settings().await;
    assert_eq!(settings["database.migrate_on_start"], "false", "the job does it");
    let pool: u64 = settings["database.max_connections"].parse().expect("a number");
    let (scaler, deployment) = (manifest("HorizontalPodAutoscaler"), manifest("Deployment"));
    let surge = number(&deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]);
    // And one that drains. The next one is not told to before that is over.
    let drain = &deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
    assert!(number(&deployment["spec"]["minReadySeconds"]) >= number(drain), "{drain}");
    let replicas = number(&scaler["spec"]["maxReplicas"]) + surge + 1;
    // One more for the health check. PostgreSQL's default is 100, of which it reserves three for superusers.
    assert!(replicas * (pool + 1) <= 97, "{replicas} replicas take {pool} connections each");
}

#[test]
fn migration_is_a_job_that_comes_before_the_rollout() {
    let mut all = manifests(FOLDER).into_iter().map(|(_, manifest)| manifest);
    let job = all.find(|one| one["kind"] == "Job").expect("a job");
    assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["args"], serde_json::json!(["migrate"]));
    let policy = job_policy();
    let argo = |one: &Value, name: &str| {
        one["metadata"]["annotations"][format!("argocd.argoproj.io/{name}")].as_str().map(str::to_owned)
    };
    for one in [&job, &policy] {
        assert_eq!(argo(one, "hook").as_deref(), Some("PreSync"));
        assert_eq!(argo(one, "hook-delete-policy").as_deref(), Some("BeforeHookCreation"));
    }
    let waves = [&policy, &job].map(|one| argo(one, "sync-wave"));
    assert_eq!(waves, [Some("-1".to_owned()), None], "its policy comes before the job");
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert!(selects(&policy["spec"]["podSelector"]["matchLabels"], labels), "{policy}");
    assert_eq!(egress_ports(&policy), [(53, "TCP"), (53, "UDP"), (5432, "TCP")].into());
}

fn job_policy() -> Value {
    let mut all = manifests(&format!("{FOLDER}/migration")).into_iter().map(|(_, manifest)| manifest);
    all.find(|one| one["kind"] == "NetworkPolicy").expect("a policy")
}
//@ end

/// The ports and protocols to which a policy allows egress.
fn egress_ports(policy: &Value) -> BTreeSet<(u64, &str)> {
    assert_eq!(policy["spec"]["policyTypes"], serde_json::json!(["Ingress", "Egress"]));
    let rules = list(&policy["spec"]["egress"]);
    let ports = rules.iter().flat_map(|rule| {
        let ports = list(&rule["ports"]);
        assert!(!ports.is_empty(), "this lets out everything: {rule}");
        if ports.iter().any(|one| one["port"] == 53) {
            let [pods, cache, cloud] = list(&rule["to"]) else {
                panic!("wherever a cluster has its DNS: {rule}")
            };
            let pods = &pods["podSelector"]["matchExpressions"][0]["values"];
            assert_eq!(*pods, serde_json::json!(["kube-dns", "node-local-dns"]));
            assert_eq!(cache["ipBlock"]["cidr"], "169.254.20.10/32");
            assert_eq!(cloud["ipBlock"]["cidr"], "169.254.169.254/32");
        }
        ports
    });
    ports.map(|port| (number(&port["port"]), port["protocol"].as_str().unwrap_or("TCP"))).collect()
}

#[test]
fn policy_lets_out_only_to_what_is_there() {
    let policy = manifest("NetworkPolicy");
    // DNS, and the webhook's receiver.
    let mut needed = BTreeSet::from([(53, "TCP"), (53, "UDP"), (443, "TCP")]);
    for (name, url) in variables(".env.example", true) {
        let host = url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default());
        if let Some(host) = host.filter(|_| !name.starts_with("APP__WEBHOOK")) {
            let port = host.rsplit(':').next().and_then(|port| port.parse().ok());
            needed.insert((port.unwrap_or(443), "TCP"));
        }
    }
    assert_eq!(egress_ports(&policy), needed);
    let everywhere =
        list(&policy["spec"]["egress"]).iter().find(|rule| rule["to"][0]["ipBlock"]["cidr"] == "0.0.0.0/0");
    let blocks: Vec<_> = list(&everywhere.expect("a rule for the internet")["to"])
        .iter()
        .map(|to| (text(&to["ipBlock"]["cidr"]), list(&to["ipBlock"]["except"])))
        .collect();
    let [("0.0.0.0/0", inside), ("::/0", inside_v6)] = blocks[..] else { panic!("{blocks:?}") };
    let private =
        ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"];
    assert_eq!(inside, private);
    assert_eq!(inside_v6, ["::1/128", "fc00::/7", "fe80::/10"]);
}

#[test]
fn compose_leads_to_what_it_starts() {
    let compose = yaml("compose.yaml");
    let (services, service) = (&compose["services"], &compose["services"]["service"]);
    assert_eq!((&service["read_only"], &service["cap_drop"][0]), (&true.into(), &"ALL".into()));
    assert_eq!(service["security_opt"][0], "no-new-privileges:true");
    let data = "deploy/grafana/provisioning/datasources/prometheus.yml";
    let files = vec!["compose.yaml", "deploy/prometheus/prometheus.yml", data];
    //@ if otlp
    let files =
        [files, vec!["deploy/collector.yml", "deploy/grafana/provisioning/datasources/traces.yml"]].concat();
    //@ end
    for file in files {
        let text = read(file);
        let words = text.split([' ', '"', '[', ']', '/', '@', '\n']).filter_map(|word| word.split_once(':'));
        for (host, port) in
            words.filter(|(host, _)| host.starts_with(|first: char| first.is_ascii_lowercase()))
        {
            assert!(
                port.parse::<u16>().is_err() || services[host].is_object(),
                "{file}: no {host} is started"
            );
        }
    }
    //@ if otlp
    let endpoint = text(&service["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]);
    let listens = yaml("deploy/collector.yml")["receivers"]["otlp"]["protocols"]["http"]["endpoint"].clone();
    assert_eq!(endpoint.replace("http://collector", "0.0.0.0"), text(&listens));
    //@ end
    //@ if postgres
    let url = text(&service["environment"]["DATABASE_URL"]).replace("@postgres:", "@127.0.0.1:");
    assert_eq!(variables(".env.example", false).get("DATABASE_URL"), Some(&url));
    assert!(
        url.ends_with(&format!("/{}", text(&services["postgres"]["environment"]["POSTGRES_DB"]))),
        "{url}"
    );
    //@ end
    let provided = yaml("deploy/grafana/provisioning/dashboards/dashboards.yml")["providers"][0].clone();
    let mount = format!("./deploy/grafana/dashboards:{}:ro,z", text(&provided["options"]["path"]));
    assert!(list(&services["grafana"]["volumes"]).iter().any(|one| *one == mount), "no {mount}");
    let scraped = yaml("deploy/prometheus/prometheus.yml")["global"]["scrape_interval"].clone();
    assert_eq!(yaml(data)["datasources"][0]["jsonData"]["timeInterval"], scraped);
    assert_eq!(manifest("ServiceMonitor")["spec"]["endpoints"][0]["interval"], scraped);
}

#[test]
fn pods_run_without_rights() {
    let dockerfile = read("Dockerfile");
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    for template in templates() {
        let (pod, container) = (&template["spec"], &template["spec"]["containers"][0]);
        let ids = &pod["securityContext"];
        assert_eq!(format!("{}:{}", ids["runAsUser"], ids["runAsGroup"]), user);
        // What the Pod Security Standards call restricted, and a read-only root filesystem.
        assert_eq!(ids["runAsNonRoot"], true);
        assert_eq!(ids["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert!(pod["volumes"].is_null() && pod["hostNetwork"].is_null(), "{pod:#}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{container:#}");
    }
}

/// Otherwise a panic would end every other request too. No other test can tell: their programs always unwind.
#[test]
fn release_survives_panics() {
    assert!(!read("Cargo.toml").lines().any(|line| line.trim_start().starts_with("panic")));
}

/// Whether a selector matches these labels. An empty one would match everything, so it counts as a mistake.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.as_object().filter(|wanted| !wanted.is_empty()).expect("a selector with labels");
    wanted.iter().all(|(name, value)| labels[name] == *value)
}

#[test]
fn selectors_mean_the_replicas_alone() {
    let (deployment, service) = (manifest("Deployment"), manifest("Service"));
    let template = &deployment["spec"]["template"];
    let (disruption, policy) = (manifest("PodDisruptionBudget"), manifest("NetworkPolicy"));
    let mut selectors = vec![
        &service["spec"]["selector"],
        &deployment["spec"]["selector"]["matchLabels"],
        &disruption["spec"]["selector"]["matchLabels"],
        &policy["spec"]["podSelector"]["matchLabels"],
    ];
    let spread = list(&template["spec"]["topologySpreadConstraints"]);
    selectors.extend(spread.iter().map(|constraint| &constraint["labelSelector"]["matchLabels"]));
    for other in templates() {
        for selector in &selectors {
            let labels = &other["metadata"]["labels"];
            assert_eq!(selects(selector, labels), other == *template, "{selector} and {labels}");
        }
    }
    let monitored = &manifest("ServiceMonitor")["spec"]["selector"]["matchLabels"];
    assert!(selects(monitored, &service["metadata"]["labels"]), "{monitored}");
    let scaled = &manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"];
    assert_eq!((&scaled["kind"], &scaled["name"]), (&deployment["kind"], &deployment["metadata"]["name"]));
}

#[test]
fn kustomizations_name_every_manifest_and_this_version() {
    let all = manifests(FOLDER);
    let version = yaml(&format!("{FOLDER}/version/kustomization.yaml"));
    let [image] = list(&version["images"]) else { panic!("one image: {version}") };
    assert_eq!(image["newTag"], env!("CARGO_PKG_VERSION"));
    for template in templates() {
        assert_eq!(template["spec"]["containers"][0]["image"], image["name"], "pods are of that image");
    }
    let is_kustomization = |path: &Path| path.ends_with("kustomization.yaml");
    for (path, kustomization) in all.iter().filter(|(path, _)| is_kustomization(path)) {
        if kustomization["kind"] == "Component" {
            continue;
        }
        let folder = path.parent().expect("a folder");
        let [component] = list(&kustomization["components"]) else {
            panic!("one version: {}", path.display())
        };
        let component = folder.join(text(component)).join("kustomization.yaml");
        let component = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&component));
        assert_eq!(component.ok().as_deref(), Some(&*read(&format!("{FOLDER}/version/kustomization.yaml"))));
        let mut there: Vec<&str> = all
            .iter()
            .filter(|(other, _)| other.parent() == Some(folder) && !is_kustomization(other))
            .filter_map(|(other, _)| other.file_name()?.to_str())
            .collect();
        let mut named: Vec<&str> = list(&kustomization["resources"]).iter().map(text).collect();
        // Not for clusters without the Prometheus operator.
        there.retain(|file| *file != "service-monitor.yaml" || named.contains(file));
        there.sort_unstable();
        named.sort_unstable();
        assert_eq!(named, there, "{}", path.display());
    }
}
