package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// OrphanIndex is the index of kinds whose objects are adopted by what selects them (pods, replica sets,
// controller revisions): it files those that nobody controls under their namespace.
const OrphanIndex = "orphan"

// Orphans gives the values of OrphanIndex.
func Orphans(obj Object) []string {
	if metav1.GetControllerOfNoCopy(obj) != nil {
		return nil
	}
	return []string{obj.GetNamespace()}
}
