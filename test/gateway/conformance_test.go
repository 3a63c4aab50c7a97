// Package gateway runs the Gateway API's conformance suite, as it is published, against a cluster: see README.md.
package gateway

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

// TestConformance runs the suite with the flags of the command line against the cluster of $KUBECONFIG.
func TestConformance(t *testing.T) { conformance.RunConformance(t) }
