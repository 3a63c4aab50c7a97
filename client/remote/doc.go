// Package remote is a client.Client over HTTPS: a mirror of the part of a cluster that one
// node needs, and writes that go to the API server.
//
// The mirror is a store in memory. It is filled by a list and a watch for each declared resource
// (Source), resumed where they broke off and begun anew when the server has forgotten the place
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes), and by single objects that
// mirrored ones refer to (Config.Needs): a node may read the secrets of its own pods one by one and no others
// (https://kubernetes.io/docs/reference/access-authn-authz/node/).
//
// What holds of a mirror, as loops rely on it:
//
//   - Revisions are the mirror's own. They grow with each change and never go back while the process lives; they say nothing
//     about the server's. The resourceVersion in an object is the server's, and is the condition of an update.
//   - No object goes back: a version that is older than the one known is dropped, whichever way it came. An object
//     that was deleted does not come back, unless as another one with a UID of its own.
//   - What the client wrote is in the snapshots taken after the write returned, if the mirror has the resource at all. So are the
//     newer version after a conflict and the absence after a NotFound: whoever then reads again does not see the same.
//   - Versions between two that are seen may be left out (after a disconnection, or where Needs holds an object back), the
//     last one never is.
//   - An object is not seen before what Needs says of it was asked for: it is then in the same snapshot, or is
//     known to be absent, or the server did not answer within Config.Patience.
//
// What does not hold, and does in one process: resources are not at one moment of the server's history with each other. A
// snapshot may show a pod before the service that was made before it. Loops over a mirror must be right in any order of arrival.
//
// The package decides nothing about objects, keeps nothing on disk and holds no credentials but those in Config.TLS.
package remote
