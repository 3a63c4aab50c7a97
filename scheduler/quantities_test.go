package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func quantities(m map[corev1.ResourceName]string) corev1.ResourceList {
	list := corev1.ResourceList{}
	for name, q := range m {
		list[name] = resource.MustParse(q)
	}
	return list
}
