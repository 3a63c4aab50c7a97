// Package custom turns CustomResourceDefinitions into Kinds: names, versions, columns, selectable fields and
// subresources as the definition says, pruning, defaulting and validation by its schemas, CEL rules included, and conversion
// between its versions.
//
// It owns what is served of a definition (Registrar) and everything derived from a schema. All of that is made at first
// use, so that a definition which nobody uses costs next to nothing. It writes nothing: conditions of definitions are
// set, and their objects removed, by the loops of controllers/customresource.
//
// Lock order: Registrar.mu before the locks of a schema. Nothing is held while a conversion webhook is asked.
package custom
