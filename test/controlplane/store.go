package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"

	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Store writes objects into etcd as the API server keeps them, in one transaction.
// So tens of thousands exist within seconds. They are not defaulted or validated: they
// must be copies of what the API server has given out, and of different resources,
// since a watch that is interrupted loses what else has the same revision.
func (c *ControlPlane) Store(ctx context.Context, objects ...client.Object) error {
	type put struct {
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
	}
	type operation struct {
		Put put `json:"requestPut"`
	}
	scheme := c.Admin.Scheme()
	serializer := protobuf.NewSerializer(scheme, scheme)
	var puts []operation
	for _, object := range objects {
		kind, err := apiutil.GVKForObject(object, scheme)
		if err != nil {
			return err
		}
		mapping, err := c.Admin.RESTMapper().RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return err
		}
		object.GetObjectKind().SetGroupVersionKind(kind)
		object.SetResourceVersion("") // etcd has it
		var value bytes.Buffer
		if err := serializer.Encode(object, &value); err != nil {
			return fmt.Errorf("encoding %s: %w", object.GetName(), err)
		}
		key := path.Join("/registry", mapping.Resource.Resource, object.GetNamespace(), object.GetName())
		puts = append(puts, operation{put{[]byte(key), value.Bytes()}})
	}
	body, err := json.Marshal(map[string]any{"success": puts})
	if err != nil {
		return err
	}
	if err := c.transaction(ctx, body); err != nil {
		return fmt.Errorf("writing into etcd: %w", err)
	}
	return nil
}

// transaction sends etcd a TxnRequest in JSON.
func (c *ControlPlane) transaction(ctx context.Context, body []byte) error {
	url := c.env.ControlPlane.Etcd.URL.JoinPath("/v3/kv/txn").String()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return err
}
