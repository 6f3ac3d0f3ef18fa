// Package controlplane runs a real Kubernetes control plane on this machine,
// without a cluster: kube-apiserver and etcd, and optionally
// kube-controller-manager and a kwok node that runs pods. Tests, demo and
// benchmarks use it.
package controlplane

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/solepod/solepod/test/fixture"
)

// Options select what runs in addition to kube-apiserver and etcd.
type Options struct {
	// ControllerManager runs ServiceAccounts, namespaces, Jobs and garbage
	// collection.
	ControllerManager bool
	// Node runs pods that are bound to fixture.NodeName: they become Running, and end
	// according to AnnotationEnd.
	Node bool
	// Audit has the API server write down who did what to pods, in AuditLog.
	Audit bool
	// ClientCertificate has the API server show webhooks a certificate, which is
	// of Caller and by ClientCA.
	ClientCertificate bool
	// Fsync has etcd wait for the disk, as it does in a cluster and need not in
	// tests.
	Fsync bool
	// Progress receives a line on where the binaries come from, and those of Build;
	// nil for silence.
	Progress io.Writer
}

// binaries are those that Start needs.
func (o Options) binaries() []Binary {
	needed := []Binary{Etcd, KubeAPIServer}
	if o.ControllerManager {
		needed = append(needed, KubeControllerManager)
	}
	if o.Node {
		needed = append(needed, Kwok)
	}
	return needed
}

// Main runs the tests of a package with a control plane of its own, which they
// find in plane. It returns the exit code.
func Main(m interface{ Run() int }, plane **ControlPlane, o Options) int {
	o.Progress = os.Stderr
	var err error
	if *plane, err = Start(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "starting the control plane:", err)
		return 1
	}
	code := m.Run()
	if err := (*plane).Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the control plane:", err)
		return 1
	}
	return code
}

// AnnotationEnd is the phase, Succeeded or Failed, in which the node lets a
// running pod end. Pods without it run until they are deleted; those of Jobs
// succeed at once, unless they have the annotation test.solepod.io/hold.
const AnnotationEnd = "test.solepod.io/end"

//go:embed kwok.yaml
var kwokStages []byte

//go:embed audit.yaml
var auditPolicy []byte

// ControlPlane is a running control plane.
type ControlPlane struct {
	// Config is an administrator's.
	Config *rest.Config
	// Admin is a client with it.
	Admin client.Client
	// Kubeconfig is the path of a file with the same.
	Kubeconfig string
	// AuditLog is the path of the audit log, one JSON object a line.
	AuditLog string
	// ClientCA is the path of the CA certificate of those who authenticate by a
	// certificate, the API server to webhooks among them.
	ClientCA string
	// Dir is a folder for what goes with the control plane; Stop removes it.
	Dir string

	env       *envtest.Environment
	processes []*Process
}

// Start starts a control plane, building what is missing. Stop it after use.
func Start(ctx context.Context, o Options) (_ *ControlPlane, err error) {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	ctrllog.SetLogger(logr.Discard()) // envtest has nothing to say that its errors do not
	paths, err := Build(ctx, o.Progress, o.binaries()...)
	if err != nil {
		return nil, err
	}
	from, err := sources(ctx, o.binaries())
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(o.Progress, from)
	dir, err := os.MkdirTemp("", "solepod-controlplane-")
	if err != nil {
		return nil, err
	}
	c := &ControlPlane{Dir: dir, Kubeconfig: filepath.Join(dir, "kubeconfig")}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	c.env = &envtest.Environment{
		ControlPlaneStartTimeout: time.Minute,
		ControlPlaneStopTimeout:  3 * time.Minute, // etcd with 100,000 pods takes more than one
	}
	apiServer := c.env.ControlPlane.GetAPIServer()
	// Folders of ours outlive a stop, and with them data, keys and tokens.
	apiServer.Path, apiServer.CertDir = paths[KubeAPIServer], filepath.Join(dir, "apiserver")
	c.env.ControlPlane.Etcd = &envtest.Etcd{Path: paths[Etcd], DataDir: filepath.Join(dir, "etcd")}
	if o.Fsync {
		c.env.ControlPlane.Etcd.Configure().Disable("unsafe-no-fsync")
	}
	for _, folder := range []string{apiServer.CertDir, c.env.ControlPlane.Etcd.DataDir} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			return nil, err
		}
	}
	if o.Audit {
		policy := filepath.Join(dir, "audit.yaml")
		if err := os.WriteFile(policy, auditPolicy, 0o600); err != nil {
			return nil, err
		}
		c.AuditLog = filepath.Join(dir, "audit.log")
		apiServer.Configure().Set("audit-policy-file", policy).Set("audit-log-path", c.AuditLog)
	}
	if o.ClientCertificate {
		configuration, err := c.configureCaller()
		if err != nil {
			return nil, err
		}
		apiServer.Configure().Set("admission-control-config-file", configuration)
	}
	// Otherwise open watches keep it from ending for a minute.
	apiServer.Configure().Set("shutdown-watch-termination-grace-period", "1s")
	// Webhooks are called at the endpoints of their Service, since no kube-proxy
	// gives its address a meaning.
	apiServer.Configure().Set("enable-aggregator-routing", "true")
	if c.Config, err = c.env.Start(); err != nil {
		return nil, fmt.Errorf("starting kube-apiserver and etcd: %w", err)
	}
	if c.Admin, err = client.New(c.Config, client.Options{}); err != nil {
		return nil, err
	}
	c.ClientCA = filepath.Join(apiServer.CertDir, "client-cert-auth-ca.crt")
	if o.ClientCertificate {
		if err = c.writeCaller(); err != nil {
			return nil, err
		}
	}
	if err = os.WriteFile(c.Kubeconfig, c.env.KubeConfig, 0o600); err != nil {
		return nil, err
	}
	if o.ControllerManager {
		if err = c.start(paths[KubeControllerManager],
			"--kubeconfig="+c.Kubeconfig,
			"--service-account-private-key-file="+filepath.Join(apiServer.CertDir, "sa-signer.key"),
			"--use-service-account-credentials",
			// The endpoints controllers support only ports that pods name.
			"--controllers=*,-endpoints-controller,-endpointslice-controller",
			"--leader-elect=false", "--secure-port=0"); err != nil {
			return nil, err
		}
	}
	if o.Node {
		if err = c.startNode(ctx, paths[Kwok]); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *ControlPlane) startNode(ctx context.Context, kwok string) error {
	stages := filepath.Join(c.Dir, "kwok.yaml")
	if err := os.WriteFile(stages, kwokStages, 0o600); err != nil {
		return err
	}
	if err := c.Admin.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fixture.NodeName}}); err != nil {
		return err
	}
	return c.start(kwok, "--kubeconfig="+c.Kubeconfig, "--config="+stages, "--manage-single-node="+fixture.NodeName, "--server-address=127.0.0.1:0")
}

func (c *ControlPlane) start(path string, args ...string) error {
	p, err := StartProcess(exec.Command(path, args...), filepath.Join(c.Dir, filepath.Base(path)+".log"))
	if err == nil {
		c.processes = append(c.processes, p)
	}
	return err
}

// Restart stops kube-apiserver and etcd, and starts them again with all that
// they had, at the same addresses.
func (c *ControlPlane) Restart() error { return errors.Join(c.Down(), c.Up()) }

// Down stops kube-apiserver and etcd.
func (c *ControlPlane) Down() error {
	return errors.Join(c.env.ControlPlane.GetAPIServer().Stop(), c.env.ControlPlane.Etcd.Stop())
}

// Up starts etcd and kube-apiserver after Down.
func (c *ControlPlane) Up() error {
	if err := c.env.ControlPlane.Etcd.Start(); err != nil {
		return err
	}
	return c.env.ControlPlane.GetAPIServer().Start()
}

// SignalEtcd sends etcd a signal. Its process is found by its data (Linux).
func (c *ControlPlane) SignalEtcd(s syscall.Signal) error {
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, file := range commands {
		command, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(command, []byte("--data-dir="+c.env.ControlPlane.Etcd.DataDir)) {
			continue // another's process, or it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return err
		}
		return syscall.Kill(pid, s)
	}
	return errors.New("no process of etcd was found")
}

// Stop stops everything and removes its files.
func (c *ControlPlane) Stop() error {
	var errs []error
	for _, p := range c.processes {
		errs = append(errs, p.Stop())
	}
	if c.env != nil {
		errs = append(errs, c.env.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(c.Dir))...)
}

// ServiceAccount returns the configuration of a client that authenticates as a
// ServiceAccount, by a token that the API server issues. The ServiceAccount is
// created if it does not exist.
func (c *ControlPlane) ServiceAccount(ctx context.Context, namespace, name string) (*rest.Config, error) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if err := c.Admin.Create(ctx, account); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	token := &authenticationv1.TokenRequest{}
	if err := c.Admin.SubResource("token").Create(ctx, account, token); err != nil {
		return nil, fmt.Errorf("requesting a token for %s/%s: %w", namespace, name, err)
	}
	config := rest.AnonymousClientConfig(c.Config)
	config.BearerToken = token.Status.Token
	return config, nil
}

// Airflow returns the configuration of a client that authenticates as a
// ServiceAccount and may do with the pods of a namespace what Airflow's chart
// lets its workers do.
func (c *ControlPlane) Airflow(ctx context.Context, accountNamespace, accountName, podNamespace string) (*rest.Config, error) {
	config, err := c.ServiceAccount(ctx, accountNamespace, accountName)
	if err != nil {
		return nil, err
	}
	name := "airflow-" + accountNamespace + "-" + accountName
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Namespace: podNamespace, Name: name},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{""},
			Resources: []string{"pods", "pods/log", "pods/exec"},
			Verbs:     []string{"create", "get", "list", "watch", "update", "patch", "delete"},
		}},
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: podNamespace, Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: accountNamespace, Name: accountName}},
	}
	for _, object := range []client.Object{role, binding} {
		if err := c.Admin.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
	}
	return config, c.WaitAllowed(ctx, serviceaccount.MakeUsername(accountNamespace, accountName), podNamespace, "create", "pods")
}

// Airflows are the clients of Airflow alpha and production, by environment,
// without a limit of their own on how fast they are. Their namespaces, which are
// labelled with the environment, and that of their pods are created if they do
// not exist.
func (c *ControlPlane) Airflows(ctx context.Context, podNamespace string) (map[string]client.Client, error) {
	out := map[string]client.Client{}
	for namespace, labels := range map[string]map[string]string{
		podNamespace:         nil,
		"airflow-alpha":      {"airflow-environment": "alpha"},
		"airflow-production": {"airflow-environment": "production"},
	} {
		object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: labels}}
		if err := c.Admin.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
	}
	for _, environment := range []string{"alpha", "production"} {
		config, err := c.Airflow(ctx, "airflow-"+environment, "airflow", podNamespace)
		if err != nil {
			return nil, err
		}
		config.QPS = -1
		if out[environment], err = client.New(config, client.Options{}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// WaitAllowed waits until a user may do something in a namespace: the API
// server's authorizer learns of roles by a watch.
func (c *ControlPlane) WaitAllowed(ctx context.Context, user, namespace, verb, resource string) error {
	resource, subresource, _ := strings.Cut(resource, "/")
	return wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user,
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: namespace, Verb: verb, Resource: resource, Subresource: subresource,
			},
		}}
		err := c.Admin.Create(ctx, review)
		return review.Status.Allowed, err
	})
}

// User returns the configuration of a client that authenticates as a user, by
// a certificate.
func (c *ControlPlane) User(name string, groups ...string) (*rest.Config, error) {
	user, err := c.env.AddUser(envtest.User{Name: name, Groups: groups}, nil)
	if err != nil {
		return nil, err
	}
	return user.Config(), nil
}

// FreeAddress returns a free port of a host, below those that the
// system gives to connections: one of those might be taken before it is used. The
// tests of other packages do not get it within the next minute: another port marks it as
// reserved.
func FreeAddress(ctx context.Context, host string) (string, error) {
	const lowest, count, attempts = 20000, 10000, 100
	listen := func(host string, port int) (net.Listener, error) {
		return new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	}
	var last error
	for range attempts {
		port := lowest + rand.IntN(count) //nolint:gosec // no secret
		claim, err := listen("127.0.0.1", port-count)
		if err != nil {
			last = err
			continue
		}
		listener, err := listen(host, port)
		if err != nil {
			last = errors.Join(err, claim.Close())
			continue
		}
		time.AfterFunc(time.Minute, func() { _ = claim.Close() })
		return listener.Addr().String(), listener.Close()
	}
	return "", fmt.Errorf("finding a free port: %w", last)
}

// WriteKubeconfig writes a kubeconfig file for a client that authenticates by
// a token.
func WriteKubeconfig(config *rest.Config, path string) error {
	const name = "solepod-test"
	out := clientcmdapi.NewConfig()
	out.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	out.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	out.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	out.CurrentContext = name
	return clientcmd.WriteToFile(*out, path)
}

// Process is a child process that logs to a file.
type Process struct {
	// Log is the path of the file.
	Log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// PID is the process's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// StartProcess starts a command whose output is appended to a file.
func StartProcess(cmd *exec.Cmd, logFile string) (*Process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	p := &Process{Log: logFile, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = errors.Join(cmd.Wait(), log.Close())
		close(p.done)
	}()
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the process ended; ask after Done.
func (p *Process) Err() error { return p.err }

// Signal sends the process a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process without notice and waits for that.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// Stop sends the process SIGTERM and waits for its end. A process that does not end
// within a minute is killed, which is an error.
func (p *Process) Stop() error {
	select {
	case <-p.done: // it has ended before; Err has the reason
		return nil
	default:
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(time.Minute):
		return errors.Join(fmt.Errorf("%s did not end on SIGTERM", p.cmd.Path), p.cmd.Process.Kill())
	}
}
