package custom

import (
	"encoding/json"
	"testing"
	"time"
)

// FuzzColumn: no JSONPath on no object brings a table down.
func FuzzColumn(f *testing.F) {
	f.Add(".spec.replicas", "integer", `{"spec":{"replicas":3}}`)
	f.Add(`.status.conditions[?(@.type=="Ready")].status`, "string", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`)
	f.Add(".metadata.creationTimestamp", "date", `{"metadata":{"creationTimestamp":"2026-01-01T00:00:00Z"}}`)
	f.Add(".a[-1:]['b',\"c\"]..d", "number", `{"a":[{"b":1.5,"c":null}]}`)
	f.Add("[", "boolean", `{"a":true}`)
	f.Fuzz(func(_ *testing.T, text, kind, object string) {
		var obj map[string]any
		if json.Unmarshal([]byte(object), &obj) != nil {
			return
		}
		if p := newPath(text); p != nil {
			_ = cell(kind, p.find(obj), time.Unix(1, 0))
		}
	})
}
