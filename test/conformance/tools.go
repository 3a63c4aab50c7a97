//go:build tools

// Package conformance is Kubernetes' own conformance suite run against Coracle: the programs that it builds are upstream's,
// unchanged. See the conformance target of the Makefile and run/main.go.
package conformance

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
	_ "k8s.io/kubernetes/test/images/nonewprivs"
	_ "k8s.io/sample-apiserver"
)
