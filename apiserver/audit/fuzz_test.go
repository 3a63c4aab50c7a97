package audit

import "testing"

// FuzzPolicy: no file brings the reader down, and what is read decides alike each time it is read.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- {level: Metadata, verbs: [get], resources: [{group: apps, resources: ['*/scale', pods]}]}\n- {level: None, nonResourceURLs: ['/healthz*']}\n"))
	f.Add([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Everything, users: [a], userGroups: [b], namespaces: ['']}]"))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy(data)
		if (err == nil) == (p == nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if _, again := ParsePolicy(data); (again == nil) != (err == nil) {
			t.Fatalf("%v, then %v", err, again)
		}
	})
}
