package table

import "strings"

// node is a radix tree of path prefixes: each edge carries bytes, each node the routes whose prefix ends there, in order.
type node struct {
	edge     string
	children []*node // by first byte of edge, unsorted: few
	// text are routes that match whatever follows, elements those that need the end or a slash next.
	text, elements []int32
}

func (n *node) insert(prefix string, route int32, element bool) {
	for prefix != "" {
		child := n.child(prefix[0])
		if child == nil {
			child = &node{edge: prefix}
			n.children = append(n.children, child)
			n, prefix = child, ""
			continue
		}
		k := 0
		for k < len(child.edge) && k < len(prefix) && child.edge[k] == prefix[k] {
			k++
		}
		if k < len(child.edge) {
			lower := *child
			lower.edge = child.edge[k:]
			*child = node{edge: child.edge[:k], children: []*node{&lower}}
		}
		n, prefix = child, prefix[k:]
	}
	if element {
		n.elements = append(n.elements, route)
	} else {
		n.text = append(n.text, route)
	}
}

func (n *node) child(b byte) *node {
	for _, c := range n.children {
		if c.edge[0] == b {
			return c
		}
	}
	return nil
}

// walk calls found with the routes of every prefix of path, longest last.
func (n *node) walk(path string, found func([]int32)) {
	for {
		if len(n.text) > 0 {
			found(n.text)
		}
		if len(n.elements) > 0 && (path == "" || path[0] == '/') {
			found(n.elements)
		}
		if path == "" {
			return
		}
		child := n.child(path[0])
		if child == nil || !strings.HasPrefix(path, child.edge) {
			return
		}
		n, path = child, path[len(child.edge):]
	}
}
