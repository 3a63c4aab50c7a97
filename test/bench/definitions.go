package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

func quantity(s string) *resource.Quantity {
	q := resource.MustParse(s)
	return &q
}

const definitionCount = 500

var definitionsResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// definitions measures 500 custom resource definitions of about 15 KB each: how long until each is served, and what they cost.
func (b *bench) definitions() error {
	i, _, err := b.start("--nodes=none")
	if err != nil {
		return err
	}
	defer i.remove()
	config, err := i.config(false)
	if err != nil {
		return err
	}
	c, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	before, err := i.status()
	if err != nil {
		return err
	}
	var served []time.Duration
	for k := range definitionCount {
		took, err := b.define(c, k)
		if err != nil {
			return err
		}
		served = append(served, took)
	}
	after, err := i.status()
	if err != nil {
		return err
	}
	b.add("definition created until its first object is there", round(median(served)), "<= 50 ms")
	b.add(fmt.Sprintf("a definition and an object of it, of %d: server CPU", definitionCount),
		fmt.Sprintf("%.1f ms", float64((after.CPU-before.CPU).Microseconds())/1000/definitionCount), "")
	b.add(fmt.Sprintf("resident memory right after %d definitions", definitionCount), fmt.Sprintf("%.0f MB", float64(after.Resident)/1e6), "")
	if _, err := i.run("down"); err != nil {
		return err
	}
	took, err := i.up()
	if err != nil {
		return err
	}
	again, err := i.status()
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("restart with %d definitions (whole command)", definitionCount), round(took), "")
	b.add(fmt.Sprintf("resident memory with %d definitions after a restart", definitionCount), fmt.Sprintf("%.0f MB", float64(again.Resident)/1e6), "<= 200 MB")
	return nil
}

// define makes a definition and an object of it as soon as the server takes it.
func (b *bench) define(c dynamic.Interface, k int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	plural := fmt.Sprintf("things%d", k)
	began := time.Now()
	if _, err := c.Resource(definitionsResource).Create(ctx, definition(k), metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	things := c.Resource(schema.GroupVersionResource{Group: "bench.example.com", Version: "v1", Resource: plural}).Namespace("default")
	thing := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "bench.example.com/v1", "kind": fmt.Sprintf("Thing%d", k),
		"metadata": map[string]any{"name": "one"}, "spec": map[string]any{"field0": "x"}}}
	err := await(ctx, func() (bool, error) {
		_, err := things.Create(ctx, thing, metav1.CreateOptions{})
		return err == nil, nil
	})
	return time.Since(began), err
}

// definition is one of about 15 KB.
func definition(k int) *unstructured.Unstructured {
	text := strings.Repeat("What this field means to those who read it. ", 3)
	field := func() map[string]any {
		return map[string]any{"type": "string", "description": text, "maxLength": int64(100), "pattern": "^[a-z]*$"}
	}
	spec := map[string]any{}
	for n := range 8 {
		inner := map[string]any{}
		for m := range 8 {
			inner[fmt.Sprintf("part%d", m)] = field()
		}
		spec[fmt.Sprintf("section%d", n)] = map[string]any{"type": "object", "description": text, "properties": inner}
		spec[fmt.Sprintf("field%d", n)] = field()
	}
	root := map[string]any{"type": "object", "properties": map[string]any{
		"spec": map[string]any{"type": "object", "properties": spec, "x-kubernetes-validations": []any{
			map[string]any{"rule": "!has(self.field0) || self.field0.size() < 50", "message": "field0 is too long"}}},
		"status": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true},
	}}
	plural := fmt.Sprintf("things%d", k)
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": apiextensionsv1.SchemeGroupVersion.String(), "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": plural + ".bench.example.com"},
		"spec": map[string]any{"group": "bench.example.com", "scope": "Namespaced",
			"names": map[string]any{"kind": fmt.Sprintf("Thing%d", k), "plural": plural, "singular": fmt.Sprintf("thing%d", k)},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true,
				"schema":       map[string]any{"openAPIV3Schema": root},
				"subresources": map[string]any{"status": map[string]any{}}}}},
	}}
}
