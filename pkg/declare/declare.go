// Package declare makes Airflow's own pods declare their environment: it decides
// which containers of a pod run Airflow, where their plugins folder is, and which
// volume and mounts put the file [manifests.Declare] there. It is pure.
//
// Which charts and images it recognises, and why the file is mounted this way, is
// described in docs/environments.md.
package declare

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/solepod/solepod/manifests"
)

const (
	// Enabled is the value of [taskpod.LabelDeclare] that opts a namespace in.
	Enabled = "enabled"
	// Disabled is the value of [taskpod.LabelDeclare] that opts a pod out.
	Disabled = "disabled"
	// Annotation is the content of the file in a pod. The kubelet writes it into
	// the volume.
	Annotation = "solepod.io/declare.py"
	// AnnotationFolder is the plugins folder of a pod's Airflow. The user sets it if
	// the spec of the pod does not show the folder.
	AnnotationFolder = "solepod.io/plugins-folder"
	// volume is the name of the volume.
	volume = "solepod-declare"
	// maxAnnotations is the maximum size of all annotations of an object
	// (TotalAnnotationSizeLimitB of Kubernetes' pkg/apis/core/validation).
	maxAnnotations = 256 << 10
	// distribution is the folder by which Python finds the entry points of a package.
	distribution = "solepod_airflow-1.dist-info/"
)

// file is a file of the volume. Its content is the value of an annotation.
type file struct{ name, annotation string }

// files returns the files of the volume. A plugins folder needs the first one only. In
// the configuration folder, Airflow finds plugins by their entry points.
func files() []file {
	return []file{
		{"solepod_declare.py", Annotation},
		{distribution + "METADATA", "solepod.io/declare.metadata"},
		{distribution + "entry_points.txt", "solepod.io/declare.entry-points"},
	}
}

func (f file) fieldPath() string { return "metadata.annotations['" + f.annotation + "']" }

func (f file) content(environmentLabel, environment string) string {
	switch path.Base(f.name) {
	case "METADATA":
		return "Metadata-Version: 2.1\nName: solepod-airflow\nVersion: 1\n"
	case "entry_points.txt":
		return "[airflow.plugins]\nsolepod = solepod_declare:SolepodPlugin\n"
	}
	return Source(environmentLabel, environment)
}

// Injection is what a pod lacks to declare its environment.
type Injection struct {
	// Annotations are the contents of the files.
	Annotations map[string]string
	// Volume is nil if the pod has the volume.
	Volume *corev1.Volume
	// Mounts are the mounts of the files by the index of the container.
	Mounts map[int][]corev1.VolumeMount
}

// volumeOf returns the volume with the first count files.
func volumeOf(count int) *corev1.Volume {
	source := &corev1.DownwardAPIVolumeSource{}
	for _, f := range files()[:count] {
		source.Items = append(source.Items, corev1.DownwardAPIVolumeFile{Path: f.name, FieldRef: &corev1.ObjectFieldSelector{FieldPath: f.fieldPath()}})
	}
	return &corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{DownwardAPI: source}}
}

// assignment is a line of the file that solepod replaces.
var assignment = regexp.MustCompile(`(?m)^(LABEL|ENVIRONMENT) = .*$`)

// Source returns the content of the file for an environment.
func Source(environmentLabel, environment string) string {
	return assignment.ReplaceAllStringFunc(string(manifests.Declare), func(line string) string {
		name, _, _ := strings.Cut(line, " ")
		value := environment
		if name == "LABEL" {
			value = environmentLabel
		}
		return fmt.Sprintf("%s = %q", name, value) // label keys and values have no characters to escape
	})
}

// Patches returns the "add" operations that inject into a pod.
func (i *Injection) Patches(pod Pod) []jsonpatch.JsonPatchOperation {
	var patches []jsonpatch.JsonPatchOperation
	add := func(at string, value any) { patches = append(patches, jsonpatch.NewOperation("add", at, value)) }
	if pod.Metadata.Annotations == nil {
		add("/metadata/annotations", i.Annotations)
	} else {
		for _, key := range slices.Sorted(maps.Keys(i.Annotations)) {
			add("/metadata/annotations/"+strings.ReplaceAll(key, "/", "~1"), i.Annotations[key])
		}
	}
	switch {
	case i.Volume == nil:
	case pod.Spec.Volumes == nil:
		add("/spec/volumes", []corev1.Volume{*i.Volume})
	default:
		add("/spec/volumes/-", *i.Volume)
	}
	for _, n := range slices.Sorted(maps.Keys(i.Mounts)) {
		at := fmt.Sprintf("/spec/containers/%d/volumeMounts", n)
		if pod.Spec.Containers[n].VolumeMounts == nil {
			add(at, i.Mounts[n])
			continue
		}
		for _, m := range i.Mounts[n] {
			add(at+"/-", m)
		}
	}
	return patches
}

// RunsAirflow reports whether one of the containers runs a component of Airflow.
func (p Pod) RunsAirflow() bool {
	return slices.ContainsFunc(p.Spec.Containers, container.runsAirflow)
}

// Plan returns the injection into a pod, and the problems of each container that
// runs Airflow but cannot get the file. injection is nil if there is nothing to
// add: no container runs Airflow, all of them have the file already, or there
// are only problems. If the API server calls the hook again, Plan finds what it has
// added.
func Plan(pod Pod, environmentLabel, environment string) (injection *Injection, problems []string) {
	injection = &Injection{Annotations: map[string]string{}, Mounts: map[int][]corev1.VolumeMount{}}
	has, foreign := pod.files()
	needs, uses := 0, false // files, and whether a container mounts the volume or will
	for i, c := range pod.Spec.Containers {
		if !c.runsAirflow() {
			continue
		}
		if c.mounts(volume) {
			needs, uses = max(needs, has), true
			continue
		}
		if c.hasFile() {
			continue
		}
		folder, count, problem := c.folder(pod.Metadata.Annotations[AnnotationFolder])
		if problem != "" {
			problems = append(problems, fmt.Sprintf("container %s: %s", c.Name, problem))
			continue
		}
		for _, f := range files()[:count] {
			injection.Mounts[i] = append(injection.Mounts[i], corev1.VolumeMount{
				Name: volume, MountPath: path.Join(folder, f.name), SubPath: f.name, ReadOnly: true,
			})
		}
		needs, uses = max(needs, count), true
	}
	if uses && foreign != "" {
		return nil, append(problems, foreign)
	}
	for _, f := range files()[:needs] {
		if content := f.content(environmentLabel, environment); pod.Metadata.Annotations[f.annotation] != content {
			injection.Annotations[f.annotation] = content
		}
	}
	switch {
	case len(injection.Annotations)+len(injection.Mounts) == 0:
		return nil, problems
	case has == 0:
		injection.Volume = volumeOf(needs)
	case has < needs:
		return nil, append(problems, fmt.Sprintf("volume %s of the pod has %d of %d files", volume, has, needs))
	}
	if problem := pod.takes(injection); problem != "" {
		return nil, append(problems, problem)
	}
	return injection, problems
}

// files returns the number of files in the volume of the pod, 0 if the pod has no such
// volume, or a problem if the volume is not solepod's.
func (p Pod) files() (count int, foreign string) {
	for _, v := range p.Spec.Volumes {
		if v.Name != volume {
			continue
		}
		count = len(v.DownwardAPI.Items)
		if count == 0 || count > len(files()) {
			return 0, "the pod has another volume " + volume
		}
		for i, item := range v.DownwardAPI.Items {
			if item.Path != files()[i].name || item.FieldRef.FieldPath != files()[i].fieldPath() {
				return 0, "the pod has another volume " + volume
			}
		}
	}
	return count, ""
}

// takes returns why a pod cannot get an injection, or "".
func (p Pod) takes(injection *Injection) (problem string) {
	if p.Spec.OS.Name == corev1.Windows || p.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows) {
		return "the pod runs on Windows"
	}
	annotations := maps.Clone(injection.Annotations)
	for key, value := range p.Metadata.Annotations {
		if _, replaced := annotations[key]; !replaced {
			annotations[key] = value
		}
	}
	size := 0
	for key, value := range annotations {
		size += len(key) + len(value)
	}
	if size > maxAnnotations {
		return fmt.Sprintf("the annotations of the pod would have %d bytes, but the maximum is %d", size, maxAnnotations)
	}
	return ""
}

// mounts reports whether a container mounts a volume.
func (c container) mounts(volume string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m mount) bool { return m.Name == volume })
}

// hasFile reports whether the user has mounted the file.
func (c container) hasFile() bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m mount) bool { return path.Base(m.MountPath) == files()[0].name })
}

// runsAirflow reports whether a container runs a component of Airflow. No single
// sign is sufficient: log groomers have Airflow's environment variables, the
// community's chart has none of them, and Bitnami's has no command.
func (c container) runsAirflow() bool {
	words := strings.FieldsFunc(strings.Join(slices.Concat(c.Command, c.Args), " "), func(r rune) bool { return strings.ContainsRune(" \t\n;&|()\"'\\", r) })
	// The first word that names a program decides. Later ones may be the names of
	// DAGs, tasks and queues.
	for i, word := range words {
		switch base := path.Base(word); {
		case strings.HasPrefix(word, "airflow.sdk."):
			return true
		case word == "airflow", base == "airflow" && path.Base(path.Dir(word)) == "bin":
			return !sidecar(words[i+1:])
		case (i == 0 || path.Base(words[i-1]) == "entrypoint") && sidecar(words[i:]): // the image's entry point adds "airflow"
			return false
		case base == "clean-logs", base == "clean-airflow-logs", base == "git-sync":
			return false
		}
	}
	if imageOf(c.Image) == "git-sync" {
		return false
	}
	// The community's chart and Bitnami's run a script of their own in Airflow's image.
	if c.Name == "log-cleanup" || strings.HasPrefix(c.Name, "sync-dags") || c.Name == "sync-plugins" {
		return false
	}
	if slices.ContainsFunc(words, func(word string) bool { return path.Base(word) == "airflow" }) {
		return true
	}
	for _, v := range c.Env {
		if v.Name == envHome || strings.HasPrefix(v.Name, "AIRFLOW__") {
			return true
		}
	}
	for _, m := range c.VolumeMounts {
		if base := path.Base(m.MountPath); base == "airflow.cfg" || base == "airflow_local_settings.py" {
			return true
		}
	}
	// The official chart's PgBouncer is apache/airflow:airflow-pgbouncer-2024.01.19-1.21.0.
	if reference := path.Base(c.Image); strings.Contains(reference, "pgbouncer") || strings.Contains(reference, "exporter") {
		return false
	}
	image := imageOf(c.Image)
	return image == "airflow" || image == "ap-airflow" || image == "astro-runtime" || strings.HasPrefix(image, "airflow-")
}

// sidecar reports whether a subcommand of Airflow runs no task and no component: the
// renewal of Kerberos tickets, and Flower.
func sidecar(command []string) bool {
	if len(command) > 0 && command[0] == "celery" {
		command = command[1:]
	}
	return len(command) > 0 && (command[0] == "kerberos" || command[0] == "flower")
}

const (
	envHome    = "AIRFLOW_HOME"
	envPlugins = "AIRFLOW__CORE__PLUGINS_FOLDER"
)

// folder returns the folder for the file in a container that runs Airflow, and the
// number of files that it needs, or why there is none. chosen is the plugins
// folder that the user has set.
func (c container) folder(chosen string) (folder string, count int, problem string) {
	plugins, unknown := chosen, ""
	if plugins == "" {
		plugins, unknown = c.plugins()
	}
	if unknown != "" {
		return "", 0, unknown
	}
	plugins = path.Clean(plugins)
	if !path.IsAbs(plugins) || plugins == "/" || strings.Contains(plugins, ":") {
		return "", 0, fmt.Sprintf("the plugins folder %q is not an absolute path", plugins)
	}
	inside := c.mountedOn(plugins)
	if inside == "" {
		return plugins, 1, ""
	}
	// Airflow appends this folder to sys.path, all versions.
	if home, _ := c.home(); path.IsAbs(home) {
		if config := path.Join(home, "config"); c.mountedOn(config) == "" && !strings.Contains(config, ":") {
			return config, len(files()), ""
		}
	}
	return "", 0, fmt.Sprintf("volume %s is mounted on the plugins folder %s; put %s into it, or into the image", inside, plugins, files()[0].name)
}

// mountedOn returns the volume that is mounted on a folder or a parent of it, or
// "". The runtime would have to create the file inside that volume. It leaves an
// empty file in it, or fails to start the container.
func (c container) mountedOn(folder string) string {
	for _, m := range c.VolumeMounts {
		if at := path.Clean(m.MountPath); at == folder || at == "/" || strings.HasPrefix(folder, at+"/") {
			return m.Name
		}
	}
	return ""
}

// plugins returns the plugins folder, or why it is unknown.
func (c container) plugins() (folder, unknown string) {
	folder, set := c.value(envPlugins)
	if set && folder == "" {
		return "", envPlugins + " is not a literal; set the annotation " + AnnotationFolder
	}
	if set {
		return folder, ""
	}
	home, set := c.home()
	switch {
	case home != "":
		return path.Join(home, "plugins"), ""
	case set:
		return "", envHome + " is not a literal; set the annotation " + AnnotationFolder
	}
	return "", "the plugins folder is not known; set " + envHome + " as a literal, or the annotation " + AnnotationFolder
}

// home returns AIRFLOW_HOME, or "" if the spec does not show it. set is true if the
// variable is set.
func (c container) home() (home string, set bool) {
	if home, set := c.value(envHome); set {
		return home, true
	}
	for _, m := range c.VolumeMounts { // the official chart and Bitnami's
		if path.Base(m.MountPath) == "airflow.cfg" {
			return path.Dir(m.MountPath), false
		}
	}
	for _, m := range c.VolumeMounts { // the community's chart
		for at := path.Clean(m.MountPath); at != "/" && at != "."; at = path.Dir(at) {
			if base := path.Base(at); (base == "logs" || base == "pod_templates") && path.Base(path.Dir(at)) == "airflow" {
				return path.Dir(at), false
			}
		}
	}
	switch image := imageOf(c.Image); {
	// Up to chart 20, Bitnami has an image for each component.
	case strings.Contains(c.Image, "bitnami") && (image == "airflow" || image == "airflow-scheduler" || image == "airflow-worker"):
		return "/opt/bitnami/airflow", false
	case image == "airflow":
		return "/opt/airflow", false
	case image == "ap-airflow", image == "astro-runtime":
		return "/usr/local/airflow", false
	}
	return "", false
}

// value returns the value of a variable, and whether it is set. The value is "" if
// it refers to something else.
func (c container) value(name string) (value string, set bool) {
	for _, v := range c.Env { // the last one counts
		if v.Name == name {
			value, set = v.Value, true
		}
	}
	if strings.Contains(value, "$(") {
		value = ""
	}
	return value, set
}

// imageOf returns the last part of the name of an image, without tag and digest.
func imageOf(reference string) string {
	name, _, _ := strings.Cut(reference, "@")
	name = path.Base(name)
	name, _, _ = strings.Cut(name, ":")
	return name
}
