// Package managed keeps metadata.managedFields: which manager owns which fields of an object, for writes that replace it
// (Tracker.Update) and for server-side apply (Tracker.Apply). KEP-555 and the structured-merge-diff repository say
// what the rules are.
//
// Update is on the way of every write. It walks the old and the new Go struct side by side with a plan that is
// compiled once for a type, touches only sets that change, and builds no schema and nothing unstructured.
// Apply, which is rarer, hands the merge to apimachinery's managedfields, with a schema made from the same plan for the
// one kind that is asked for.
//
// It never decides who may write, knows no store and keeps no objects: only plans (one a type), schemas (one a version
// that has been applied) and a bounded number of field sets, so that equal ones are held once.
package managed
