package clustertest

import (
	"encoding/json"
	"fmt"

	"coracle.dev/coracle/cluster"
	"coracle.dev/coracle/store"
)

// snapshotFormat is what a snapshot says that it is. It changes with every change that an older reader would misread.
const snapshotFormat = "coracle.dev/clustertest/v1"

// snapshot is the form of a snapshot: JSON, so that one can be kept beside a test.
type snapshot struct {
	Format  string  `json:"format"`
	Objects []saved `json:"objects"`
}

type saved struct {
	Resource  string `json:"resource"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Data is the object as etcd would keep it.
	Data []byte `json:"data"`
}

// Snapshot returns every object of the cluster as it is at one moment, secrets too, in a form that [Restore] takes.
func (c *Cluster) Snapshot() ([]byte, error) {
	objects, err := c.inner.Save()
	if err != nil {
		return nil, fmt.Errorf("clustertest: snapshot: %w", err)
	}
	out := snapshot{Format: snapshotFormat}
	for _, o := range objects {
		out.Objects = append(out.Objects, saved{o.Key.Resource, o.Key.Namespace, o.Key.Name, o.Data})
	}
	return json.Marshal(out)
}

func readSnapshot(data []byte) ([]cluster.Saved, error) {
	var in snapshot
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("clustertest: snapshot: %w", err)
	}
	if in.Format != snapshotFormat {
		return nil, fmt.Errorf("clustertest: snapshot: its format is %q, want %q", in.Format, snapshotFormat)
	}
	var out []cluster.Saved
	for _, o := range in.Objects {
		out = append(out, cluster.Saved{Key: store.Key{Resource: o.Resource, Namespace: o.Namespace, Name: o.Name}, Data: o.Data})
	}
	return out, nil
}
