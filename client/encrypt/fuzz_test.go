package encrypt

import (
	"encoding/base64"
	"strings"
	"testing"

	"coracle.dev/coracle/store"
)

// FuzzConfig: a file is refused or works, and no error quotes a key.
func FuzzConfig(f *testing.F) {
	const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n"
	secret := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))
	f.Add(head + "- {resources: [secrets], providers: [{secretbox: {keys: [{name: a, secret: " + secret + "}]}}, {identity: {}}]}\n")
	f.Add(head + "- {resources: ['*.apps', '*.*'], providers: [{aescbc: {keys: [{name: a, secret: " + secret + "}]}}]}\n")
	f.Add(head + `- {resources: [secrets], providers: [{kms: {apiVersion: v2, name: a, endpoint: "unix:///nonexistent", timeout: 1ns}}]}`)
	f.Add(head + "- {resources: [secrets], providers: [{aesgcm: {keys: [{name: 'a:b', secret: " + secret + "}]}, identity: {}}]}\n")
	f.Add("[")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse([]byte(text))
		if err != nil {
			if strings.Contains(text, secret) && strings.Contains(err.Error(), secret) {
				t.Fatalf("a key in an error: %v", err)
			}
			return
		}
		defer c.Close()
		codec := Wrap(texts{}, c)
		for _, resource := range []string{"secrets", "deployments.apps"} {
			key := store.Key{Resource: resource, Namespace: "x", Name: "y"}
			data, err := codec.Encode(key, "plain")
			if err != nil {
				continue // a plugin that is not there
			}
			if got, err := codec.Decode(key, data); err != nil || got != "plain" {
				t.Fatalf("%s: %v %v", resource, got, err)
			}
		}
	})
}
