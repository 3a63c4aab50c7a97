// Package garbage deletes what belonged to objects that are gone, by owner references.
//
// It owns the finalizers foregroundDeletion and orphan, and the removal of owner references
// whose owner is gone. Every kind of the registry is treated alike, those of custom resources
// too. It never deletes an object that has an owner which is there to stay, nor one whose owner's
// kind it does not know.
//
// A key is an object. The index "owner" of the store tells who depends on it, so that
// there is no graph to build: only which kinds have owners of which kinds is remembered, so that a
// deletion is looked up in those resources where it can matter.
//
// Kinds that the registry does not know (those of aggregated servers, and of definitions that are gone) are beyond it: whether an
// owner of such a kind is there cannot be said, and so its dependents stay; and objects of such a kind are no dependents that an owner
// here would wait for, be released from, or take with it. Their server has to do that, or who made them.
package garbage
