package cluster

import (
	"net/http"

	"coracle.dev/coracle/network/cni"
)

// serveCNI lets containers of other runtimes be attached to the pods' network, for CNI plugins that ask on the control socket. That is the last
// part to start, so the network is there if there is to be one.
func (c *Cluster) serveCNI(mux *http.ServeMux) {
	cni.Serve(mux, func() cni.Pods {
		if c.pods == nil {
			return nil
		}
		return c.pods
	})
}
