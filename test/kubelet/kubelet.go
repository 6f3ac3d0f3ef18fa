// Package kubelet runs the containers of solepod's Deployment, as a kubelet
// does, but as plain processes of this machine: with the arguments, volumes,
// ServiceAccount and life cycle that the manifests give them. The API server
// calls them through the Service, so that what is installed is all that is
// needed.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/controlplane"
)

// AnnotationDown keeps a pod from running.
const AnnotationDown = "test.solepod.io/down"

// Options of a kubelet.
type Options struct {
	// Namespace is the one whose pods are run.
	Namespace string
	// Binary is what all images contain.
	Binary string
	// Nodes are created; pods are bound to the one that has the fewest.
	Nodes []string
}

// Kubelet runs pods. It is the scheduler and the EndpointSlice controller as
// well, because pods with the same IP address cannot share a named port.
type Kubelet struct {
	Options
	plane *controlplane.ControlPlane
	dir   string
	ip    string
	stop  context.CancelFunc
	ended chan struct{}

	mu   sync.Mutex
	pods map[types.UID]*pod
	// bound are the pods that were bound here.
	bound map[types.UID]binding
	errs  []error
}

// pod is one that runs.
type pod struct {
	Pod
	uid     types.UID
	dir     string
	health  string
	process *controlplane.Process
	args    []string
	ready   bool
	leaving bool
	volumes map[string]map[string][]byte // what is in each, by file
}

// Pod is one that runs, for tests.
type Pod struct {
	Name, Node string
	// Address is the host:port at which it serves the webhook.
	Address string
	// MetricsAddress is the host:port of /metrics.
	MetricsAddress string
	// Log is the path of its log.
	Log string
}

// Start runs a kubelet until it is stopped.
func Start(ctx context.Context, plane *controlplane.ControlPlane, o Options) (*Kubelet, error) {
	ip, err := hostIP()
	if err != nil {
		return nil, err
	}
	for _, node := range o.Nodes {
		if err := plane.Admin.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: node, Labels: map[string]string{corev1.LabelHostname: node},
		}}); client.IgnoreAlreadyExists(err) != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp("", "solepod-kubelet-")
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.Background())
	k := &Kubelet{Options: o, plane: plane, dir: dir, ip: ip, stop: stop, ended: make(chan struct{}), pods: map[types.UID]*pod{}, bound: map[types.UID]binding{}}
	go func() {
		defer close(k.ended)
		wait.UntilWithContext(running, k.sync, 50*time.Millisecond)
	}()
	return k, nil
}

// hostIP is an address of this machine that an EndpointSlice may have, which a
// loopback address is not.
func hostIP() (string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, address := range addresses {
		if ipNet, ok := address.(*net.IPNet); ok && ipNet.IP.To4() != nil && ipNet.IP.IsGlobalUnicast() {
			return ipNet.IP.String(), nil
		}
	}
	return "", errors.New("this machine has no IPv4 address but loopback, at which API servers do not call a Service")
}

// Running are the pods that run now.
func (k *Kubelet) Running() []Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Pod
	for _, p := range k.pods {
		if !p.leaving {
			out = append(out, p.Pod)
		}
	}
	return out
}

// Kill ends the process of a pod without notice; it is started again.
func (k *Kubelet) Kill(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.pods {
		if p.Name == name {
			return p.process.Kill()
		}
	}
	return fmt.Errorf("no pod %s runs", name)
}

// Stop ends all processes. It returns what went wrong while pods ran.
func (k *Kubelet) Stop() error {
	k.stop()
	<-k.ended
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.pods {
		k.errs = append(k.errs, p.process.Stop())
	}
	return errors.Join(append(k.errs, os.RemoveAll(k.dir))...)
}

// sync reconciles each pod. The next call repeats what has failed because of a
// concurrent change or deletion.
func (k *Kubelet) sync(ctx context.Context) {
	var list corev1.PodList
	if err := k.plane.Admin.List(ctx, &list, client.InNamespace(k.Namespace)); err != nil {
		return // the API server restarts
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	there := map[types.UID]bool{}
	for i := range list.Items {
		there[list.Items[i].UID] = true
	}
	for uid, p := range k.pods {
		if !there[uid] && !p.leaving { // deleted without grace
			k.errs = append(k.errs, p.process.Kill())
			delete(k.pods, uid)
			delete(k.bound, uid)
		}
	}
	for i := range list.Items {
		if err := k.syncPod(ctx, &list.Items[i]); err != nil && !expected(err) && ctx.Err() == nil {
			k.errs = append(k.errs, fmt.Errorf("pod %s: %w", list.Items[i].Name, err))
		}
	}
}

func expected(err error) bool {
	var unanswered *url.Error
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err) || errors.As(err, &unanswered) ||
		apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

func (k *Kubelet) syncPod(ctx context.Context, object *corev1.Pod) error {
	p, runs := k.pods[object.UID]
	switch {
	case object.DeletionTimestamp != nil && runs && !p.leaving:
		p.leaving = true
		go k.leave(p)
		return k.publish(ctx, object, p, false)
	case object.DeletionTimestamp != nil && !runs:
		return k.plane.Admin.Delete(ctx, object, client.GracePeriodSeconds(0))
	case object.DeletionTimestamp != nil:
		return nil
	case object.Spec.NodeName == "":
		revision := object.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
		node := k.emptiest(revision)
		err := k.plane.Admin.SubResource("binding").Create(ctx, object, &corev1.Binding{
			Target: corev1.ObjectReference{Kind: "Node", Name: node},
		})
		if err == nil {
			k.bound[object.UID] = binding{node, revision}
		}
		return err
	case !runs:
		return k.run(ctx, object)
	}
	_, down := object.Annotations[AnnotationDown]
	if down {
		if err := p.process.Kill(); err != nil {
			return err
		}
	}
	select {
	case <-p.process.Done():
		if down {
			break
		}
		if err := k.start(ctx, p); err != nil {
			return err
		}
	default:
	}
	if err := k.mount(ctx, object, p); err != nil {
		return err
	}
	ready := answers(ctx, "http://"+p.health+"/readyz")
	if ready == p.ready {
		return nil
	}
	if err := k.publish(ctx, object, p, ready); err != nil {
		return err
	}
	p.ready = ready
	return nil
}

// binding is where a pod of a revision of the Deployment runs.
type binding struct{ node, revision string }

// emptiest is the node with the fewest pods of a revision, by which a scheduler
// spreads them (matchLabelKeys).
func (k *Kubelet) emptiest(revision string) string {
	count := map[string]int{}
	for uid, b := range k.bound {
		if p, runs := k.pods[uid]; b.revision == revision && (!runs || !p.leaving) {
			count[b.node]++
		}
	}
	best := k.Nodes[0]
	for _, node := range k.Nodes {
		if count[node] < count[best] {
			best = node
		}
	}
	return best
}

// run starts the one container of a pod.
func (k *Kubelet) run(ctx context.Context, object *corev1.Pod) error {
	container := object.Spec.Containers[0]
	dir := filepath.Join(k.dir, string(object.UID))
	p := &pod{uid: object.UID, dir: dir, volumes: map[string]map[string][]byte{}}
	p.Name, p.Node, p.Log = object.Name, object.Spec.NodeName, filepath.Join(dir, "log")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := k.mount(ctx, object, p); err != nil {
		return err // as with a kubelet, the pod waits for its volumes
	}
	identity, err := k.plane.ServiceAccount(ctx, object.Namespace, object.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := controlplane.WriteKubeconfig(identity, kubeconfig); err != nil {
		return err
	}
	for _, arg := range container.Args {
		for _, env := range container.Env {
			if from := env.ValueFrom; from != nil && from.ResourceFieldRef != nil && from.ResourceFieldRef.Resource == "limits.memory" {
				arg = strings.ReplaceAll(arg, "$("+env.Name+")", strconv.FormatInt(container.Resources.Limits.Memory().Value(), 10))
			}
		}
		for _, mount := range container.VolumeMounts {
			arg = strings.ReplaceAll(arg, mount.MountPath, filepath.Join(dir, mount.Name))
		}
		p.args = append(p.args, arg)
	}
	p.args = append(p.args, "--kubeconfig="+kubeconfig)
	if err := k.start(ctx, p); err != nil {
		return err
	}
	k.pods[object.UID] = p
	return nil
}

// start runs the process of a pod. It gets new addresses unless it has been ready at its
// old ones: another process may use one of them.
func (k *Kubelet) start(ctx context.Context, p *pod) (err error) {
	if !p.ready {
		for _, address := range []*string{&p.Address, &p.MetricsAddress, &p.health} {
			if *address, err = controlplane.FreeAddress(ctx, k.ip); err != nil {
				return err
			}
		}
	}
	args := append(slices.Clone(p.args), "--webhook-bind-address="+p.Address, "--metrics-bind-address="+p.MetricsAddress, "--health-probe-bind-address="+p.health)
	p.process, err = controlplane.StartProcess(exec.Command(k.Binary, args...), p.Log)
	return err
}

// mount writes the volumes of a pod, and again when they change: all files of
// a volume at once, as kubelets do, so that no certificate is seen without its key.
func (k *Kubelet) mount(ctx context.Context, object *corev1.Pod, p *pod) error {
	for _, volume := range object.Spec.Volumes {
		content := map[string][]byte{}
		switch {
		case volume.ConfigMap != nil:
			var source corev1.ConfigMap
			if err := k.plane.Admin.Get(ctx, client.ObjectKey{Namespace: object.Namespace, Name: volume.ConfigMap.Name}, &source); err != nil {
				return err
			}
			for name, text := range source.Data {
				content[name] = []byte(text)
			}
		case volume.Secret != nil:
			var source corev1.Secret
			if err := k.plane.Admin.Get(ctx, client.ObjectKey{Namespace: object.Namespace, Name: volume.Secret.SecretName}, &source); err != nil {
				return err
			}
			maps.Copy(content, source.Data)
		default:
			return fmt.Errorf("volume %s is neither a ConfigMap nor a Secret", volume.Name)
		}
		if before, there := p.volumes[volume.Name]; there && maps.EqualFunc(before, content, func(a, b []byte) bool { return string(a) == string(b) }) {
			continue
		}
		if err := replace(filepath.Join(p.dir, volume.Name), content); err != nil {
			return err
		}
		p.volumes[volume.Name] = content
	}
	return nil
}

// replace makes path a folder with these files, in one step.
func replace(path string, content map[string][]byte) error {
	folder, err := os.MkdirTemp(filepath.Dir(path), filepath.Base(path)+".")
	if err != nil {
		return err
	}
	for name, data := range content {
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
			return err
		}
	}
	link := folder + ".link"
	return errors.Join(os.Symlink(folder, link), os.Rename(link, path))
}

// leave ends a pod, which finishes what it has begun.
func (k *Kubelet) leave(p *pod) {
	err := p.process.Stop()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pods, p.uid)
	delete(k.bound, p.uid)
	if err = errors.Join(err, p.process.Err()); err != nil {
		k.errs = append(k.errs, fmt.Errorf("pod %s: %w", p.Name, err))
	}
}

// publish writes the readiness of a pod into its status and into an EndpointSlice of the
// Service.
func (k *Kubelet) publish(ctx context.Context, object *corev1.Pod, p *pod, ready bool) error {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	now := metav1.Now()
	before := object.DeepCopy()
	object.Status.Phase, object.Status.PodIP, object.Status.PodIPs = corev1.PodRunning, k.ip, []corev1.PodIP{{IP: k.ip}}
	object.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodReady, Status: status, LastTransitionTime: now},
		{Type: corev1.ContainersReady, Status: status, LastTransitionTime: now},
	}
	if err := k.plane.Admin.Status().Patch(ctx, object, client.MergeFrom(before)); err != nil {
		return err
	}

	address, err := netip.ParseAddrPort(p.Address)
	if err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: object.Namespace, Name: object.Name}}
	change := func() {
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: "solepod"}
		slice.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: object.Name, UID: object.UID}}
		slice.AddressType = discoveryv1.AddressTypeIPv4
		slice.Ports = []discoveryv1.EndpointPort{{Name: ptr.To("webhook"), Port: ptr.To(int32(address.Port()))}}
		slice.Endpoints = []discoveryv1.Endpoint{{
			Addresses: []string{k.ip}, NodeName: &p.Node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Terminating: ptr.To(object.DeletionTimestamp != nil)},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: object.Namespace, Name: object.Name, UID: object.UID},
		}}
	}
	change()
	if err := k.plane.Admin.Create(ctx, slice); !apierrors.IsAlreadyExists(err) {
		return err
	}
	if err := k.plane.Admin.Get(ctx, client.ObjectKeyFromObject(slice), slice); err != nil {
		return err
	}
	change()
	return k.plane.Admin.Update(ctx, slice)
}

func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}
