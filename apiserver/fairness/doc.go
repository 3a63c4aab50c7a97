// Package fairness shares the API server among its clients (API Priority and Fairness, KEP-1040,
// https://kubernetes.io/docs/concepts/cluster-administration/flow-control/): flow schemas sort requests into priority levels, a
// level has seats, and within a level the flows wait in queues that are served by turns. What can neither run nor wait is refused
// with 429, so that a flood costs its author and nobody else, and memory stays bounded.
//
// It owns seats, queues and the bytes in flight. It knows no storage and no HTTP; the parts of this program write
// in-process and never come here. The decisions (core) are functions of the state and the time under one lock; Gate lets
// goroutines wait for them. There is no goroutine but those of the requests.
//
// Where upstream moves seats between levels every ten seconds by what each has asked for, a level here borrows at the
// moment of need whatever others have to lend, and the next free seat goes to the level that is furthest below its share.
package fairness
