// Package manifests has what is installed, for solepod check to compare a
// cluster with.
package manifests

import _ "embed"

// Install is install.yaml: the manifests of an installation in the namespace
// [Namespace] with default values.
//
//go:embed install.yaml
var Install []byte

// Declare is the Airflow plugin that declares the environment.
//
//go:embed airflow/solepod_declare.py
var Declare []byte

// Namespace is the one that Install has.
const Namespace = "solepod-system"
