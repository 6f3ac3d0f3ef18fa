package declare

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// no is what a container gets that runs no component of Airflow.
const no = ""

// The pods of Airflow's charts, with what Plan reads and no more. They are written by
// hand, after the output of helm template, and of PodGenerator.construct_pod of
// Airflow 2.10.5 and 3.3.2 for the workers of the KubernetesExecutor. "One of each"
// puts containers of several pods into one. An image example.com/team/tasks:1 and
// astro-runtime are what users set. All other containers got the same verdict in the
// complete pods of these charts:
//
//   - the official chart (apache/airflow) 1.0.0, 1.11.0-dev, 1.15.0, 1.16.0, 1.18.0
//     and 1.19.0-dev of 2026-01, with git-sync, Kerberos, PgBouncer and Flower
//   - Bitnami's 16.0.0, 22.7.3 and 25.1.0, with DAGs from git and metrics
//   - the community's (airflow-helm) 8.9.0, with git-sync and the log cleanup
//   - Astronomer's 1.15.9 and 1.17.20, with git-sync and PgBouncer
//
// Jobs and CronJobs that run Airflow's commands get the file and do not need it.
func TestCharts(t *testing.T) {
	const (
		opt   = "/opt/airflow/plugins/solepod_declare.py"
		bin   = "/opt/bitnami/airflow/plugins/solepod_declare.py"
		local = "/usr/local/airflow/plugins/solepod_declare.py"
	)
	for name, tc := range map[string]struct {
		spec string
		want map[string]string // the path of the file, by container
	}{
		"official 1.0, worker": {
			spec: `
containers:
- {name: worker, image: 'apache/airflow:2.0.2', args: [bash, -c, airflow celery worker], env: [{name: AIRFLOW__CORE__FERNET_KEY}], volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}, {name: config, mountPath: /opt/airflow/airflow.cfg}]}
- {name: git-sync, image: 'k8s.gcr.io/git-sync/git-sync:v3.3.0', env: [{name: GIT_SYNC_REV}], volumeMounts: [{name: dags, mountPath: /git}]}
- {name: worker-gc, image: 'apache/airflow:2.0.2', args: [bash, /clean-logs], volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}]}
- {name: worker-kerberos, image: 'apache/airflow:2.0.2', args: [kerberos], env: [{name: AIRFLOW__CORE__FERNET_KEY}], volumeMounts: [{name: config, mountPath: /opt/airflow/airflow.cfg}]}
`,
			want: map[string]string{"worker": opt, "git-sync": no, "worker-gc": no, "worker-kerberos": no},
		},
		"official 1.0, others": {
			spec: `
containers:
- {name: statsd, image: 'apache/airflow:airflow-statsd-exporter-2021.04.28-v0.17.0', args: [--statsd.mapping-config=/etc/statsd-exporter/mappings.yml]}
- {name: redis, image: 'redis:6-buster', command: [/bin/sh], args: [-c, redis-server]}
`,
			want: map[string]string{"statsd": no, "redis": no},
		},
		"official 1.11, scheduler": { // without AIRFLOW_HOME
			spec: `
containers:
- {name: scheduler, image: 'apache/airflow:2.7.1', args: [bash, -c, exec airflow scheduler], env: [{name: AIRFLOW__CORE__FERNET_KEY}],
   volumeMounts: [{name: config, mountPath: /opt/airflow/pod_templates/pod_template_file.yaml}, {name: logs, mountPath: /opt/airflow/logs}, {name: config, mountPath: /opt/airflow/airflow.cfg}, {name: config, mountPath: /opt/airflow/config/airflow_local_settings.py}]}
- {name: scheduler-log-groomer, image: 'apache/airflow:2.7.1', args: [bash, /clean-logs], env: [{name: AIRFLOW__LOG_RETENTION_DAYS, value: '15'}], volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}]}
`,
			want: map[string]string{"scheduler": opt, "scheduler-log-groomer": no},
		},
		"official 1.11, worker of the KubernetesExecutor": {
			spec: `
containers:
- {name: base, image: 'apache/airflow:2.7.1', args: [airflow, tasks, run, etl, extract, r, --local, --subdir, DAGS_FOLDER/etl.py],
   env: [{name: AIRFLOW__CORE__EXECUTOR, value: LocalExecutor}, {name: AIRFLOW_IS_K8S_EXECUTOR_POD, value: 'True'}],
   volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}, {name: config, mountPath: /opt/airflow/airflow.cfg}, {name: dags, mountPath: /opt/airflow/dags}]}
`,
			want: map[string]string{"base": opt},
		},
		"official 1.16, worker": {
			spec: `
containers:
- {name: worker, image: 'apache/airflow:2.10.5', args: [bash, -c, "exec \\\nairflow celery worker"], env: [{name: AIRFLOW__CORE__FERNET_KEY}, {name: AIRFLOW_HOME, value: /opt/airflow}],
   volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}, {name: config, mountPath: /opt/airflow/airflow.cfg}, {name: config, mountPath: /opt/airflow/config/airflow_local_settings.py}, {name: ccache, mountPath: /var/kerberos-ccache}, {name: dags, mountPath: /opt/airflow/dags}]}
- {name: git-sync, image: 'registry.k8s.io/git-sync/git-sync:v4.3.0', env: [{name: GITSYNC_REF}], volumeMounts: [{name: dags, mountPath: /git}]}
- {name: worker-log-groomer, image: 'apache/airflow:2.10.5', args: [bash, /clean-logs], env: [{name: AIRFLOW__LOG_RETENTION_DAYS, value: '15'}, {name: AIRFLOW_HOME, value: /opt/airflow}], volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}]}
- {name: worker-kerberos, image: 'apache/airflow:2.10.5', args: [kerberos], env: [{name: AIRFLOW_HOME, value: /opt/airflow}], volumeMounts: [{name: config, mountPath: /opt/airflow/airflow.cfg}]}
initContainers:
- {name: wait-for-airflow-migrations, image: 'apache/airflow:2.10.5', args: [airflow, db, check-migrations], env: [{name: AIRFLOW_HOME, value: /opt/airflow}]}
`,
			want: map[string]string{"worker": opt, "git-sync": no, "worker-log-groomer": no, "worker-kerberos": no},
		},
		"official 1.16, webserver": {
			spec: `
containers:
- {name: webserver, image: 'apache/airflow:2.10.5', args: [bash, -c, exec airflow webserver], env: [{name: AIRFLOW_HOME, value: /opt/airflow}], volumeMounts: [{name: config, mountPath: /opt/airflow/airflow.cfg}]}
`,
			want: map[string]string{"webserver": opt},
		},
		"official 1.19, worker of the KubernetesExecutor": {
			spec: `
containers:
- {name: base, image: 'apache/airflow:3.1.6', args: [python, -m, airflow.sdk.execution_time.execute_workload, --json-string, '{"ti":{"dag_id":"etl","task_id":"extract"}}'],
   env: [{name: AIRFLOW__CORE__EXECUTOR, value: KubernetesExecutor}, {name: AIRFLOW_HOME, value: /opt/airflow}, {name: AIRFLOW_IS_K8S_EXECUTOR_POD, value: 'True'}],
   volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}, {name: config, mountPath: /opt/airflow/airflow.cfg}, {name: dags, mountPath: /opt/airflow/dags}]}
- {name: worker-kerberos, image: 'apache/airflow:3.1.6', args: [kerberos], env: [{name: AIRFLOW_HOME, value: /opt/airflow}], volumeMounts: [{name: config, mountPath: /opt/airflow/airflow.cfg}]}
`,
			want: map[string]string{"base": opt, "worker-kerberos": no},
		},
		"official 1.19, one of each": {
			spec: `
containers:
- {name: scheduler, image: 'apache/airflow:3.1.6', args: [bash, -c, exec airflow scheduler], env: [{name: AIRFLOW_HOME, value: /opt/airflow}]}
- {name: triggerer, image: 'apache/airflow:3.1.6', args: [bash, -c, exec airflow triggerer], env: [{name: AIRFLOW_HOME, value: /opt/airflow}]}
- {name: dag-processor, image: 'apache/airflow:3.1.6', args: [bash, -c, exec airflow dag-processor], env: [{name: AIRFLOW_HOME, value: /opt/airflow}]}
- {name: api-server, image: 'apache/airflow:3.1.6', args: [bash, -c, exec airflow api-server], env: [{name: AIRFLOW_HOME, value: /opt/airflow}]}
- {name: run-airflow-migrations, image: 'apache/airflow:3.1.6', args: [bash, -c, "exec \\\nairflow db migrate"], env: [{name: AIRFLOW_HOME, value: /opt/airflow}]}
- {name: airflow-cleanup-pods, image: 'apache/airflow:3.1.6', args: [bash, -c, exec airflow kubernetes cleanup-pods --namespace=data], env: [{name: AIRFLOW_HOME, value: /opt/airflow}]}
- {name: flower, image: 'apache/airflow:3.1.6', args: [bash, -c, "exec \\\nairflow celery flower"], env: [{name: AIRFLOW_HOME, value: /opt/airflow}], volumeMounts: [{name: config, mountPath: /opt/airflow/airflow.cfg}]}
- {name: pgbouncer, image: 'apache/airflow:airflow-pgbouncer-2025.03.05-1.23.1', command: [pgbouncer, -u, nobody, /etc/pgbouncer/pgbouncer.ini]}
- {name: metrics-exporter, image: 'apache/airflow:airflow-pgbouncer-exporter-2025.03.05-0.18.0'}
- {name: statsd, image: 'quay.io/prometheus/statsd-exporter:v0.28.0', args: [--statsd.mapping-config=/etc/statsd-exporter/mappings.yml]}
- {name: redis, image: 'redis:7.2-bookworm', args: [redis-server, --requirepass, $(REDIS_PASSWORD)]}
- {name: postgresql, image: 'docker.io/bitnami/postgresql:16'}
`,
			want: map[string]string{
				"scheduler": opt, "triggerer": opt, "dag-processor": opt, "api-server": opt, "run-airflow-migrations": opt, "airflow-cleanup-pods": opt,
				"flower": no, "pgbouncer": no, "metrics-exporter": no, "statsd": no, "redis": no, "postgresql": no,
			},
		},
		"Bitnami 16, one of each": {
			spec: `
containers:
- {name: airflow-web, image: 'docker.io/bitnami/airflow:2.7.1', env: [{name: AIRFLOW_EXECUTOR, value: CeleryExecutor}], volumeMounts: [{name: dags, mountPath: /opt/bitnami/airflow/dags/git_dags}]}
- {name: airflow-scheduler, image: 'docker.io/bitnami/airflow-scheduler:2.7.1', env: [{name: AIRFLOW_EXECUTOR, value: CeleryExecutor}], volumeMounts: [{name: dags, mountPath: /opt/bitnami/airflow/dags/git_dags}]}
- {name: airflow-worker, image: 'docker.io/bitnami/airflow-worker:2.7.1', env: [{name: AIRFLOW_EXECUTOR, value: CeleryExecutor}], volumeMounts: [{name: dags, mountPath: /opt/bitnami/airflow/dags/git_dags}]}
- {name: sync-repositories, image: 'docker.io/bitnami/git:2.42.0', command: [/bin/bash], args: [-ec, git pull origin main], volumeMounts: [{name: dags, mountPath: /dags}]}
- {name: airflow-exporter, image: 'docker.io/bitnami/airflow-exporter:0.20220314.0', env: [{name: AIRFLOW_PROMETHEUS_DATABASE_HOST, value: db}]}
`,
			want: map[string]string{"airflow-web": bin, "airflow-scheduler": bin, "airflow-worker": bin, "sync-repositories": no, "airflow-exporter": no},
		},
		"Bitnami 16, worker of the KubernetesExecutor": {
			spec: `
containers:
- {name: base, image: 'docker.io/bitnami/airflow-worker:2.7.1', args: [airflow, tasks, run, etl, extract, r, --local, --subdir, DAGS_FOLDER/etl.py],
   env: [{name: AIRFLOW_EXECUTOR, value: KubernetesExecutor}], volumeMounts: [{name: config, mountPath: /opt/bitnami/airflow/airflow.cfg}, {name: dags, mountPath: /opt/bitnami/airflow/dags/git_dags}]}
`,
			want: map[string]string{"base": bin},
		},
		"Bitnami 25, worker": {
			spec: `
containers:
- {name: airflow-worker, image: 'docker.io/bitnami/airflow:3.0.5', env: [{name: AIRFLOW__CORE__FERNET_KEY_CMD, value: cat x}, {name: AIRFLOW_COMPONENT_TYPE, value: worker}],
   volumeMounts: [{name: empty-dir, mountPath: /tmp}, {name: empty-dir, mountPath: /opt/bitnami/airflow/logs}, {name: empty-dir, mountPath: /opt/bitnami/airflow/airflow.cfg}, {name: empty-dir, mountPath: /opt/bitnami/airflow/venv}, {name: empty-dir, mountPath: /opt/bitnami/airflow/config/airflow_local_settings.py}]}
- {name: sync-dags, image: 'docker.io/bitnami/airflow:3.0.5', command: [/bin/bash], args: [-ec, git pull origin main], volumeMounts: [{name: empty-dir, mountPath: /dags}]}
- {name: statsd-exporter, image: 'docker.io/bitnami/statsd-exporter:0.28.0'}
`,
			want: map[string]string{"airflow-worker": bin, "sync-dags": no, "statsd-exporter": no},
		},
		"Bitnami 25, worker of the KubernetesExecutor": {
			spec: `
containers:
- {name: base, image: 'docker.io/bitnami/airflow:3.0.5', args: [python, -m, airflow.sdk.execution_time.execute_workload, --json-string, '{}'],
   env: [{name: AIRFLOW_COMPONENT_TYPE, value: worker}], volumeMounts: [{name: empty-dir, mountPath: /opt/bitnami/airflow/airflow.cfg}]}
`,
			want: map[string]string{"base": bin},
		},
		"community, one of each": {
			spec: `
containers:
- {name: airflow-scheduler, image: 'apache/airflow:2.8.4-python3.9', command: [/usr/bin/dumb-init, --, /entrypoint], args: [bash, -c, exec airflow scheduler -n -1],
   volumeMounts: [{name: dags, mountPath: /opt/airflow/dags}, {name: logs, mountPath: /opt/airflow/logs}, {name: pod-template, mountPath: /opt/airflow/pod_templates/pod_template.yaml}]}
- {name: airflow-worker, image: 'apache/airflow:2.8.4-python3.9', command: [/usr/bin/dumb-init, --, /entrypoint], args: [bash, -c, exec airflow celery worker], volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}]}
- {name: airflow-triggerer, image: 'apache/airflow:2.8.4-python3.9', command: [/usr/bin/dumb-init, --, /entrypoint], args: [bash, -c, exec airflow triggerer]}
- {name: airflow-web, image: 'apache/airflow:2.8.4-python3.9', command: [/usr/bin/dumb-init, --, /entrypoint], args: [bash, -c, exec airflow webserver]}
- {name: db-migrations, image: 'apache/airflow:2.8.4-python3.9', command: [/usr/bin/dumb-init, --, /entrypoint], args: [python, -u, /mnt/scripts/db_migrations.py]}
- {name: dags-git-sync, image: 'registry.k8s.io/git-sync/git-sync:v3.6.9', volumeMounts: [{name: dags, mountPath: /dags}]}
- {name: log-cleanup, image: 'apache/airflow:2.8.4-python3.9', command: [/usr/bin/dumb-init, --, /entrypoint], args: [bash, -c, find "$LOG_PATH" -delete], volumeMounts: [{name: logs, mountPath: /opt/airflow/logs}]}
- {name: airflow-flower, image: 'apache/airflow:2.8.4-python3.9', command: [/usr/bin/dumb-init, --, /entrypoint], args: [bash, -c, exec airflow celery flower]}
- {name: pgbouncer, image: 'ghcr.io/airflow-helm/pgbouncer:1.22.1-patch.0', command: [/usr/bin/dumb-init, --]}
`,
			want: map[string]string{
				"airflow-scheduler": opt, "airflow-worker": opt, "airflow-triggerer": opt, "airflow-web": opt, "db-migrations": opt,
				"dags-git-sync": no, "log-cleanup": no, "airflow-flower": no, "pgbouncer": no,
			},
		},
		"community, worker of the KubernetesExecutor": {
			spec: `
containers:
- {name: base, image: 'example.com/team/tasks:1', args: [airflow, tasks, run, etl, extract, r], env: [{name: AIRFLOW__CORE__EXECUTOR, value: LocalExecutor}],
   volumeMounts: [{name: dags, mountPath: /opt/airflow/dags}, {name: logs, mountPath: /opt/airflow/logs}]}
`,
			want: map[string]string{"base": opt},
		},
		"Astronomer, one of each": { // without AIRFLOW_HOME
			spec: `
containers:
- {name: scheduler, image: 'quay.io/astronomer/ap-airflow:2.4.3', args: [bash, -c, exec airflow scheduler], volumeMounts: [{name: config, mountPath: /usr/local/airflow/airflow.cfg}]}
- {name: worker, image: 'quay.io/astronomer/ap-airflow:2.4.3', args: [bash, -c, "exec \\\nairflow celery worker"], volumeMounts: [{name: config, mountPath: /usr/local/airflow/airflow.cfg}]}
- {name: triggerer, image: 'quay.io/astronomer/astro-runtime:12.7.1@sha256:00', args: [bash, -c, exec airflow triggerer]}
- {name: webserver, image: 'quay.io/astronomer/ap-airflow:2.4.3', args: [airflow, webserver], volumeMounts: [{name: config, mountPath: /usr/local/airflow/airflow.cfg}]}
- {name: scheduler-log-groomer, image: 'quay.io/astronomer/ap-airflow:2.4.3', args: [/usr/local/bin/clean-airflow-logs], env: [{name: AIRFLOW__LOG_RETENTION_DAYS, value: '15'}], volumeMounts: [{name: logs, mountPath: /usr/local/airflow/logs}]}
- {name: git-sync, image: 'quay.io/astronomer/ap-git-sync:4.4.1-2', volumeMounts: [{name: dags, mountPath: /git}]}
- {name: pgbouncer, image: 'quay.io/astronomer/ap-pgbouncer:1.24.1-2', command: [pgbouncer, -u, nobody, /etc/pgbouncer/pgbouncer.ini]}
- {name: metrics-exporter, image: 'quay.io/astronomer/ap-pgbouncer-exporter:0.19.0-3'}
- {name: statsd, image: 'quay.io/astronomer/ap-statsd-exporter:0.28.0-3'}
`,
			want: map[string]string{
				"scheduler": local, "worker": local, "triggerer": local, "webserver": local,
				"scheduler-log-groomer": no, "git-sync": no, "pgbouncer": no, "metrics-exporter": no, "statsd": no,
			},
		},
		"Astronomer, worker of the KubernetesExecutor": {
			spec: `
containers:
- {name: base, image: 'example.com/team/tasks:1', command: [], args: [airflow, tasks, run, etl, extract, r], env: [{name: AIRFLOW__CORE__EXECUTOR, value: LocalExecutor}],
   volumeMounts: [{name: logs, mountPath: /usr/local/airflow/logs}, {name: config, mountPath: /usr/local/airflow/airflow.cfg}]}
`,
			want: map[string]string{"base": local},
		},
		"hand-written": {
			spec: `
containers:
- {name: main, image: 'apache/airflow:2.10.5', args: [standalone]}
- {name: proxy, image: 'nginx:1'}
`,
			want: map[string]string{"main": opt, "proxy": no},
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, tc.spec, "{}")
			injection, problems := Plan(pod, "airflow-environment", "alpha")
			if injection == nil {
				injection = &Injection{}
			}
			got := map[string]string{}
			for i, c := range pod.Spec.Containers {
				got[c.Name] = no
				for _, m := range injection.Mounts[i] {
					got[c.Name] = m.MountPath
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" || len(problems) > 0 {
				t.Errorf("%s\nproblems: %s", diff, strings.Join(problems, "; "))
			}
			if pod.RunsAirflow() != (injection.Volume != nil) {
				t.Error("RunsAirflow contradicts Plan")
			}
		})
	}
}
