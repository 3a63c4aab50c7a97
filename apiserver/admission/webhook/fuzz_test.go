package webhook

import (
	"encoding/json"
	"testing"

	reviewv1 "k8s.io/api/admission/v1"
)

// FuzzAnswer: whatever a webhook answers is an error or a response to this very question.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","allowed":true,"patchType":"JSONPatch","patch":"W10="}}`), true)
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"other"}}`), false)
	f.Add([]byte(`{"response":{"allowed":true,"patch":"AA=="}}`), false)
	f.Add([]byte(`null`), true)
	f.Fuzz(func(t *testing.T, data []byte, mutating bool) {
		answer := &reviewv1.AdmissionReview{}
		if json.Unmarshal(data, answer) != nil {
			return
		}
		if got, err := verify(answer, "v1", "u", mutating); (err == nil) == (got == nil) || err == nil && got.UID != "u" {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}
