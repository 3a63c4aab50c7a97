package quota

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Add returns the sum of two lists, which stay as they are.
func Add(a, b corev1.ResourceList) corev1.ResourceList {
	sum := a.DeepCopy()
	if sum == nil {
		sum = corev1.ResourceList{}
	}
	for name, q := range b {
		have := sum[name]
		have.Add(q)
		sum[name] = have
	}
	return sum
}

// Growth is by how much now exceeds before, name by name; what did not grow is left out.
func Growth(now, before corev1.ResourceList) corev1.ResourceList {
	grown := corev1.ResourceList{}
	for name, q := range now {
		q = q.DeepCopy()
		q.Sub(before[name])
		if q.Sign() > 0 {
			grown[name] = q
		}
	}
	return grown
}

// Mask returns the part of a list that keep holds the names of.
func Mask(list corev1.ResourceList, keep func(corev1.ResourceName) bool) corev1.ResourceList {
	kept := corev1.ResourceList{}
	for name, q := range list {
		if keep(name) {
			kept[name] = q
		}
	}
	return kept
}

// Has returns whether a list has a name, for Mask.
func Has(list corev1.ResourceList) func(corev1.ResourceName) bool {
	return func(name corev1.ResourceName) bool { _, ok := list[name]; return ok }
}

// Names are the names of a list, in order.
func Names(list corev1.ResourceList) []corev1.ResourceName { return slices.Sorted(maps.Keys(list)) }

// Equal compares quantities, not the way they are written.
func Equal(a, b corev1.ResourceList) bool {
	return maps.EqualFunc(a, b, func(x, y resource.Quantity) bool { return x.Cmp(y) == 0 })
}

// Text writes a list as messages do: "cpu=1,pods=2".
func Text(list corev1.ResourceList) string {
	var parts []string
	for _, name := range Names(list) {
		q := list[name]
		parts = append(parts, string(name)+"="+q.String())
	}
	return strings.Join(parts, ",")
}
