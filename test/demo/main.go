// Command demo replays the incident that solepod exists for, on a real
// kube-apiserver and etcd that it starts on this machine: two Airflow
// deployments run the same task in one namespace at the same time. It exits
// with 0 only if each act ended as it should.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/declare"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

const jobs = "data-jobs"

func main() {
	keep := flag.Bool("keep", false, "instead of the acts, leave the control plane and solepod running until interrupted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func run(ctx context.Context, out io.Writer, keep bool) (err error) {
	options := controlplane.Options{Progress: os.Stderr}
	missing, err := controlplane.Missing(ctx, options)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		fmt.Fprintln(out, "kube-apiserver and etcd are compiled first, which takes about five minutes on two cores; make controlplane-download downloads them instead.")
	}
	fmt.Fprintln(out, "Starting a control plane: kube-apiserver and etcd.")
	plane, err := controlplane.Start(ctx, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	d, err := newDemo(ctx, out, plane)
	if err != nil {
		return err
	}
	if keep {
		return d.keep(ctx)
	}
	return d.acts(ctx)
}

// demo is the stage: namespaces, and a client for each Airflow.
type demo struct {
	out               io.Writer
	plane             *controlplane.ControlPlane
	alpha, production client.Client
}

func newDemo(ctx context.Context, out io.Writer, plane *controlplane.ControlPlane) (*demo, error) {
	d := &demo{out: out, plane: plane}
	version, err := serverVersion(plane)
	if err != nil {
		return nil, err
	}
	for _, namespace := range []*corev1.Namespace{
		{ObjectMeta: metav1.ObjectMeta{Name: "airflow-alpha", Labels: map[string]string{taskpod.DefaultEnvironmentLabel: "alpha", taskpod.LabelDeclare: declare.Enabled}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "airflow-production", Labels: map[string]string{taskpod.DefaultEnvironmentLabel: "production", taskpod.LabelDeclare: declare.Enabled}}},
		{ObjectMeta: metav1.ObjectMeta{Name: jobs}},
	} {
		if err := d.plane.Admin.Create(ctx, namespace); err != nil {
			return nil, err
		}
	}
	if d.alpha, err = d.airflow(ctx, "airflow-alpha"); err != nil {
		return nil, err
	}
	if d.production, err = d.airflow(ctx, "airflow-production"); err != nil {
		return nil, err
	}
	d.say("Kubernetes %s is up. Two Airflows, in airflow-alpha and airflow-production, run their task pods in %s.", version, jobs)
	return d, nil
}

func serverVersion(plane *controlplane.ControlPlane) (string, error) {
	c, err := discovery.NewDiscoveryClientForConfig(plane.Config)
	if err != nil {
		return "", err
	}
	version, err := c.ServerVersion()
	if err != nil {
		return "", err
	}
	return version.GitVersion, nil
}

// airflow is a client with the token of an Airflow's ServiceAccount.
func (d *demo) airflow(ctx context.Context, namespace string) (client.Client, error) {
	config, err := d.plane.Airflow(ctx, namespace, "airflow", jobs)
	if err != nil {
		return nil, err
	}
	return client.New(config, client.Options{})
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// acts plays the incident.
func (d *demo) acts(ctx context.Context) (err error) {
	d.say("\n=== Act (a): no guard\n")
	alpha, err := d.create(ctx, d.alpha, "alpha", "export-action-log-4devg7t1", false)
	if err != nil {
		return err
	}
	if _, err := d.create(ctx, d.production, "production", "export-action-log-rzwroznv", false); err != nil {
		return err
	}
	if err := d.show(ctx, 2, 2); err != nil {
		return err
	}
	d.say("\nProduction's task looks for its pod and fails:\n  More than one pod running with labels %s", alpha.Selector(taskpod.DefaultEnvironmentLabel))
	d.say("Its cleanup fails as well, and export-action-log-rzwroznv stays behind as an orphan.")
	if err := d.clear(ctx); err != nil {
		return err
	}

	d.say("\n=== Act (b): solepod guards the cluster\n")
	g, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	if _, err := d.create(ctx, d.alpha, "alpha", "export-action-log-4devg7t1", false); err != nil {
		return err
	}
	_, denied := d.create(ctx, d.production, "production", "export-action-log-rzwroznv", false)
	if denied == nil {
		return errors.New("production's duplicate was admitted")
	}
	if !apierrors.IsForbidden(denied) || !strings.Contains(denied.Error(), string(policy.DuplicateEnvironment)) {
		return fmt.Errorf("production's duplicate was not rejected but failed: %w", denied)
	}
	if err := d.showLog(denied); err != nil {
		return err
	}
	if err := d.show(ctx, 1); err != nil {
		return err
	}
	if err := d.clear(ctx); err != nil {
		return err
	}

	d.say("\n=== Act (c): both Airflows are restarted, and declare their environment\n")
	for _, environment := range []string{"alpha", "production"} {
		if err := d.restart(ctx, environment); err != nil {
			return err
		}
	}
	d.say("")
	if _, err := d.create(ctx, d.alpha, "alpha", "export-action-log-4devg7t1", true); err != nil {
		return err
	}
	if _, err := d.create(ctx, d.production, "production", "export-action-log-rzwroznv", true); err != nil {
		return err
	}
	if err := d.show(ctx, 1, 1); err != nil {
		return err
	}

	d.say("\n=== Act (d): production's Airflow goes for alpha's pod\n")
	foreign := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: jobs, Name: "export-action-log-4devg7t1"}}
	denied = d.production.Delete(ctx, foreign)
	if denied == nil {
		return errors.New("production deleted alpha's pod")
	}
	if !apierrors.IsForbidden(denied) || !strings.Contains(denied.Error(), string(policy.ForeignEnvironment)) {
		return fmt.Errorf("production's delete was not rejected but failed: %w", denied)
	}
	d.say("%-10s  deletes %s: rejected\n\n  %v", "production", foreign.Name, denied)
	if err := d.alpha.Delete(ctx, foreign); err != nil {
		return fmt.Errorf("alpha deletes its own pod: %w", err)
	}
	d.say("\n%-10s  deletes %s: admitted", "alpha", foreign.Name)
	d.say("\nAll four acts ended as they should.")
	return nil
}

// keep leaves everything running until the context ends.
func (d *demo) keep(ctx context.Context) (err error) {
	g, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	d.say("solepod guards the cluster; its log is %s. In another terminal:\n\n  export KUBECONFIG=%s\n\nCtrl-C stops everything.", g.Log, d.plane.Kubeconfig)
	select {
	case <-ctx.Done():
		return nil
	case <-g.Done():
		if ctx.Err() != nil {
			return nil // Ctrl-C at a terminal reaches solepod as well
		}
		return fmt.Errorf("solepod has ended: %w", g.Err())
	}
}

// start starts solepod and makes the API server call it.
func (d *demo) start(ctx context.Context) (*solepod.Process, error) {
	g, err := solepod.Start(ctx, d.plane, solepod.Options{})
	if err != nil {
		return nil, err
	}
	if err := g.Install(ctx); err != nil {
		return nil, errors.Join(err, g.Stop())
	}
	return g, nil
}

// restart creates a pod of an Airflow, as a rollout restart does, and shows what
// solepod has injected.
func (d *demo) restart(ctx context.Context, environment string) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "airflow-" + environment, GenerateName: "airflow-scheduler-"},
		Spec: corev1.PodSpec{ServiceAccountName: "airflow", Containers: []corev1.Container{{
			Name: "scheduler", Image: "apache/airflow", Args: []string{"airflow", "scheduler"},
		}}},
	}
	if err := d.plane.Admin.Create(ctx, pod); err != nil {
		return err
	}
	for _, mount := range pod.Spec.Containers[0].VolumeMounts {
		if strings.HasSuffix(mount.MountPath, "/solepod_declare.py") {
			d.say("%-10s  restarts its scheduler: solepod mounts %s", environment, mount.MountPath)
			return nil
		}
	}
	return fmt.Errorf("solepod has injected nothing into %s", pod.Name)
}

// create submits the incident's pod as an Airflow does, declared or not, and
// lets it run, which is a kubelet's part.
func (d *demo) create(ctx context.Context, airflow client.Client, environment, name string, declared bool) (taskpod.Pod, error) {
	pod := fixture.Pod(jobs, name)
	if declared { // as the file does that solepod injects
		pod.Labels[taskpod.DefaultEnvironmentLabel], pod.Labels[taskpod.LabelEvidence] = environment, taskpod.EvidenceV1
	}
	err := airflow.Create(ctx, pod)
	if err != nil {
		d.say("%-10s  creates %s: rejected", environment, name)
		return taskpod.Pod{}, err
	}
	d.say("%-10s  creates %s: admitted", environment, name)
	pod.Status.Phase = corev1.PodRunning
	return taskpod.FromMeta(pod, pod.Status.Phase), d.plane.Admin.Status().Update(ctx, pod)
}

// showLog prints a rejection as the task log of Airflow does: the exception of
// the Kubernetes client, with the API server's Status as its body.
func (d *demo) showLog(err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return err
	}
	answer := status.Status()
	answer.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"} // which the client has dropped
	body, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	d.say("\nThe log of production's task ends with:\n  kubernetes.client.exceptions.ApiException: (%d)\n  Reason: %s\n  HTTP response body: %s",
		answer.Code, answer.Reason, body)
	return nil
}

// show prints the pods and how many each one's Airflow finds when it looks for
// it, and fails if that is not what was expected.
func (d *demo) show(ctx context.Context, want ...int) error {
	var list corev1.PodList
	if err := d.plane.Admin.List(ctx, &list, client.InNamespace(jobs)); err != nil {
		return err
	}
	var got []int
	table := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(table, "\nPOD\tENVIRONMENT\tPHASE\tTRY\tAIRFLOW FINDS\n")
	for i := range list.Items {
		pod := taskpod.FromMeta(&list.Items[i], list.Items[i].Status.Phase)
		var found corev1.PodList
		selector := client.MatchingLabelsSelector{Selector: pod.Selector(taskpod.DefaultEnvironmentLabel)}
		if err := d.plane.Admin.List(ctx, &found, client.InNamespace(jobs), selector); err != nil {
			return err
		}
		got = append(got, len(found.Items))
		environment := pod.Environment(taskpod.DefaultEnvironmentLabel)
		switch {
		case environment == "":
			environment = "unknown"
		case pod.Stamped:
			environment += " (stamped)"
		default:
			environment += " (declared)"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\n", pod.Name, environment, pod.Phase, pod.Labels[taskpod.LabelTry], len(found.Items))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("the selectors match %v pods, want %v", got, want)
	}
	return nil
}

// clear removes the pods of an act.
func (d *demo) clear(ctx context.Context) error {
	return d.plane.Admin.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(jobs), client.GracePeriodSeconds(0))
}
