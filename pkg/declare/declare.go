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
	// file is the name of the file in the plugins folder.
	file = "solepod_declare.py"

	// maxAnnotations is the maximum size of all annotations of an object
	// (TotalAnnotationSizeLimitB of Kubernetes' pkg/apis/core/validation).
	maxAnnotations = 256 << 10
)

// Injection is what makes a pod declare its environment.
type Injection struct {
	// Annotation is the value of the annotation [Annotation].
	Annotation string
	// AddVolume is false if the pod has the volume.
	AddVolume bool
	// Mounts are the mount paths of the file by the index of the container.
	Mounts map[int]string
}

// Volume returns the volume to add.
func (Injection) Volume() corev1.Volume {
	return corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
		Items: []corev1.DownwardAPIVolumeFile{{
			Path: file, FieldRef: &corev1.ObjectFieldSelector{FieldPath: fieldPath},
		}},
	}}}
}

const fieldPath = "metadata.annotations['" + Annotation + "']"

// Mount returns the mount of the file at a path.
func (Injection) Mount(at string) corev1.VolumeMount {
	return corev1.VolumeMount{Name: volume, MountPath: at, SubPath: file, ReadOnly: true}
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
		add("/metadata/annotations", map[string]string{Annotation: i.Annotation})
	} else {
		add("/metadata/annotations/"+strings.ReplaceAll(Annotation, "/", "~1"), i.Annotation)
	}
	switch {
	case i.AddVolume && pod.Spec.Volumes == nil:
		add("/spec/volumes", []corev1.Volume{i.Volume()})
	case i.AddVolume:
		add("/spec/volumes/-", i.Volume())
	}
	for _, n := range slices.Sorted(maps.Keys(i.Mounts)) {
		at, mount := fmt.Sprintf("/spec/containers/%d/volumeMounts", n), i.Mount(i.Mounts[n])
		if pod.Spec.Containers[n].VolumeMounts == nil {
			add(at, []corev1.VolumeMount{mount})
		} else {
			add(at+"/-", mount)
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
// are only problems.
func Plan(pod Pod, environmentLabel, environment string) (injection *Injection, problems []string) {
	mounts := map[int]string{}
	for i, c := range pod.Spec.Containers {
		if !c.runsAirflow() || c.mounted() {
			continue
		}
		folder, problem := c.pluginsFolder(pod.Metadata.Annotations[AnnotationFolder])
		if problem != "" {
			problems = append(problems, fmt.Sprintf("container %s: %s", c.Name, problem))
			continue
		}
		mounts[i] = path.Join(folder, file)
	}
	if len(mounts) == 0 {
		return nil, problems
	}
	injection = &Injection{Annotation: Source(environmentLabel, environment), AddVolume: true, Mounts: mounts}
	if problem := pod.takes(injection); problem != "" {
		return nil, append(problems, problem)
	}
	return injection, problems
}

// takes returns why a pod cannot get an injection, or "". It finds its own volume
// if the API server calls the hook again.
func (p Pod) takes(injection *Injection) (problem string) {
	if p.Spec.OS.Name == corev1.Windows || p.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows) {
		return "the pod runs on Windows"
	}
	size := len(Annotation) + len(injection.Annotation)
	for key, value := range p.Metadata.Annotations {
		if key != Annotation {
			size += len(key) + len(value)
		}
	}
	if size > maxAnnotations {
		return fmt.Sprintf("the annotations of the pod would have %d bytes, but the maximum is %d", size, maxAnnotations)
	}
	for _, v := range p.Spec.Volumes {
		if v.Name != volume {
			continue
		}
		if items := v.DownwardAPI.Items; len(items) != 1 || items[0].Path != file || items[0].FieldRef.FieldPath != fieldPath {
			return "the pod has another volume " + volume
		}
		injection.AddVolume = false
	}
	return ""
}

// mounted reports whether a container has the file, mounted by solepod or by
// its user.
func (c container) mounted() bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m mount) bool { return m.Name == volume || path.Base(m.MountPath) == file })
}

// runsAirflow reports whether a container runs a component of Airflow. No single
// sign is sufficient: log groomers have Airflow's environment variables, the
// community's chart has none of them, and Bitnami's has no command.
func (c container) runsAirflow() bool {
	words := strings.FieldsFunc(strings.Join(slices.Concat(c.Command, c.Args), " "), func(r rune) bool { return strings.ContainsRune(" \t\n;&|()\"'\\", r) })
	for _, word := range words {
		switch path.Base(word) {
		case "clean-logs", "clean-airflow-logs", "kerberos", "git-sync":
			return false
		}
	}
	if imageOf(c.Image) == "git-sync" {
		return false
	}
	for _, word := range words {
		if path.Base(word) == "airflow" || strings.HasPrefix(word, "airflow.sdk.") {
			return true
		}
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
	image := imageOf(c.Image)
	return image == "airflow" || image == "ap-airflow" || image == "astro-runtime" || strings.HasPrefix(image, "airflow-")
}

const (
	envHome    = "AIRFLOW_HOME"
	envPlugins = "AIRFLOW__CORE__PLUGINS_FOLDER"
)

// pluginsFolder returns the plugins folder of a container that runs Airflow, or
// why it cannot be used. chosen is the one that the user has set.
func (c container) pluginsFolder(chosen string) (folder, problem string) {
	folder = chosen
	if folder == "" {
		folder = c.literal(envPlugins)
	}
	if folder == "" {
		home := c.home()
		if home == "" {
			return "", "the plugins folder is not known; set " + envHome + " as a literal, or the annotation " + AnnotationFolder
		}
		folder = path.Join(home, "plugins")
	}
	folder = path.Clean(folder)
	if !path.IsAbs(folder) || folder == "/" || strings.Contains(folder, ":") {
		return "", fmt.Sprintf("the plugins folder %q is not an absolute path", folder)
	}
	// The runtime would have to create the file inside the other volume. It leaves
	// an empty file in it, or fails to start the container.
	for _, m := range c.VolumeMounts {
		if at := path.Clean(m.MountPath); at == folder || at == "/" || strings.HasPrefix(folder, at+"/") {
			return "", fmt.Sprintf("volume %s is mounted on the plugins folder %s; put %s into it, or into the image", m.Name, folder, file)
		}
	}
	return folder, ""
}

// home returns AIRFLOW_HOME, or "" if the spec does not show it.
func (c container) home() string {
	if home := c.literal(envHome); home != "" {
		return home
	}
	for _, m := range c.VolumeMounts { // the official chart and Bitnami's
		if path.Base(m.MountPath) == "airflow.cfg" {
			return path.Dir(m.MountPath)
		}
	}
	for _, m := range c.VolumeMounts { // the community's chart
		for at := path.Clean(m.MountPath); at != "/" && at != "."; at = path.Dir(at) {
			if base := path.Base(at); (base == "logs" || base == "pod_templates") && path.Base(path.Dir(at)) == "airflow" {
				return path.Dir(at)
			}
		}
	}
	switch image := imageOf(c.Image); {
	case image == "airflow" && strings.Contains(c.Image, "bitnami"):
		return "/opt/bitnami/airflow"
	case image == "airflow":
		return "/opt/airflow"
	case image == "ap-airflow", image == "astro-runtime":
		return "/usr/local/airflow"
	}
	return ""
}

// literal returns the value of a variable, or "" if it is not set or refers to
// other variables.
func (c container) literal(name string) string {
	value := ""
	for _, v := range c.Env { // the last one counts
		if v.Name == name {
			value = v.Value
		}
	}
	if strings.Contains(value, "$(") {
		return ""
	}
	return value
}

// imageOf returns the last part of the name of an image, without tag and digest.
func imageOf(reference string) string {
	name, _, _ := strings.Cut(reference, "@")
	name = path.Base(name)
	name, _, _ = strings.Cut(name, ":")
	return name
}
