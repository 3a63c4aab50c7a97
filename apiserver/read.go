package apiserver

import (
	"context"
	"net/http"

	"coracle.dev/coracle/apiserver/list"
	"coracle.dev/coracle/apiserver/table"
	"coracle.dev/coracle/apiserver/watch"
	"coracle.dev/coracle/apiserver/wire"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// get answers GET of a named object.
func (c *call) get() error {
	if rv := c.query.Get("resourceVersion"); rv != "" && rv != "0" {
		want, errs := list.ParseRevision(rv)
		if len(errs) > 0 {
			return apierrors.NewBadRequest("invalid resource version: " + errs.ToAggregate().Error())
		}
		if _, err := c.lister.Fresh(c.r.Context(), want); err != nil {
			return err
		}
	}
	e, err := c.current()
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, e)
}

// selection reads what a list, watch or deletecollection is about.
func (c *call) selection() (*list.Selection, list.Options, error) {
	opts, err := list.ParseOptions(c.query, c.info.Verb == "watch")
	if err != nil {
		return nil, opts, err
	}
	sel, err := list.Select(c.kind, c.info.Namespace, c.info.Name, opts)
	return sel, opts, err
}

// page lists what is selected.
func (c *call) page(ctx context.Context) (list.Page, error) {
	sel, opts, err := c.selection()
	if err != nil {
		return list.Page{}, err
	}
	return c.lister.List(ctx, sel, c.info.Namespace, c.kind.Namespaced, opts)
}

// list answers GET of a collection.
func (c *call) list() error {
	accept, err := wire.Negotiate(c.r, c.offer())
	if err != nil {
		return err
	}
	page, err := c.page(c.r.Context())
	if err != nil {
		return err
	}
	return c.answerPage(accept, page)
}

func (c *call) answerPage(accept wire.Accept, page list.Page) error {
	view := c.view(c.kind, c.version)
	if accept.As != nil {
		switch accept.As.Kind {
		case "Table":
			return c.answerTable(http.StatusOK, accept, view, func(w *table.Writer) ([]byte, error) {
				return w.List(nil, page.Meta, page.Entries, c.cfg.Now())
			})
		case "PartialObjectMetadataList":
			view = view.Metadata(accept.As.Version)
		default:
			return wire.NotAcceptableMessage("you requested PartialObjectMetadata, but the requested object is a list (*" + view.List.Kind + ")")
		}
	}
	body, err := view.Many(accept.Media, page.Meta, page.Entries)
	if err != nil {
		return err
	}
	c.x.recordAnswer(accept.Media, body, func() (wire.Body, error) { return view.Many(wire.JSON, page.Meta, page.Entries) })
	return c.send(http.StatusOK, accept, body)
}

// watch streams changes.
func (c *call) watch() error {
	offer := c.offer()
	offer.Stream = true
	accept, err := wire.Negotiate(c.r, offer)
	if err != nil {
		return err
	}
	if accept.Media == wire.YAML {
		return wire.NotAcceptable([]string{wire.TypeJSON + ";stream=watch", wire.TypeProtobuf + ";stream=watch"})
	}
	sel, opts, err := c.selection()
	if err != nil {
		return err
	}
	q := &watch.Request{
		Store: c.cfg.Store, Lister: c.lister, Now: c.cfg.Now, Kind: c.kind, Selection: sel, Options: opts,
		View: c.view(c.kind, c.version), Media: accept.Media, Stop: c.stop,
	}
	if accept.As != nil {
		if accept.As.Kind == "Table" {
			topts, err := table.ParseOptions(c.query, accept.As.Version)
			if err != nil {
				return err
			}
			q.Table = table.NewWriter(q.View, topts)
		} else {
			q.View = q.View.Metadata(accept.As.Version)
		}
	}
	q.Begun = c.x.pass.Release
	return q.Serve(c.w, c.r)
}
