package declare

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	corev1 "k8s.io/api/core/v1"
)

// Pod is the part of a pod that the package reads. A corev1.Pod of 3 MiB could
// take 200 times its size: its lists of containers, variables and mounts have no
// maximum length.
type Pod struct {
	Metadata struct {
		Name         string            `json:"name"`
		GenerateName string            `json:"generateName"`
		Labels       map[string]string `json:"labels"`
		Annotations  map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		ServiceAccountName string            `json:"serviceAccountName"`
		NodeSelector       map[string]string `json:"nodeSelector"`
		OS                 struct {
			Name corev1.OSName `json:"name"`
		} `json:"os"`
		Volumes    limited[podVolume] `json:"volumes"`
		Containers limited[container] `json:"containers"`
	} `json:"spec"`
}

type podVolume struct {
	Name        string `json:"name"`
	DownwardAPI struct {
		Items limited[struct {
			Path     string `json:"path"`
			FieldRef struct {
				FieldPath string `json:"fieldPath"`
			} `json:"fieldRef"`
		}] `json:"items"`
	} `json:"downwardAPI"`
}

type container struct {
	Name    string          `json:"name"`
	Image   string          `json:"image"`
	Command limited[string] `json:"command"`
	Args    limited[string] `json:"args"`
	Env     limited[struct {
		Name string `json:"name"`
		// Value is empty for a variable with a valueFrom.
		Value string `json:"value"`
	}] `json:"env"`
	VolumeMounts limited[mount] `json:"volumeMounts"`
}

type mount struct {
	Name      string `json:"name"`
	MountPath string `json:"mountPath"`
}

// Decode reads a pod from JSON. It fails if one of its lists has more than
// maxItems items.
func Decode(raw []byte) (Pod, error) {
	var p Pod
	err := json.Unmarshal(raw, &p, jsontext.AllowDuplicateNames(true))
	return p, err
}

// maxItems is more than the pods of Airflow have of anything.
const maxItems = 1000

// limited is a list of at most maxItems items.
type limited[T any] []T

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (l *limited[T]) UnmarshalJSONFrom(from *jsontext.Decoder) error {
	if from.PeekKind() != '[' {
		return json.UnmarshalDecode(from, (*[]T)(l)) // null, or an error
	}
	if _, err := from.ReadToken(); err != nil {
		return err
	}
	*l = limited[T]{}
	for from.PeekKind() != ']' {
		if len(*l) == maxItems {
			return fmt.Errorf("a list has more than %d items", maxItems)
		}
		var item T
		if err := json.UnmarshalDecode(from, &item); err != nil {
			return err
		}
		*l = append(*l, item)
	}
	_, err := from.ReadToken()
	return err
}
