package agent

import (
	"context"

	"weft/internal/plan"
)

// Interim: until the eBPF driver has the method itself.
func watchRows(ctx context.Context, driver any, changed func(plan.Key, string)) error {
	if w, ok := driver.(interface {
		Watch(context.Context, func(plan.Key, string)) error
	}); ok {
		return w.Watch(ctx, changed)
	}
	<-ctx.Done()
	return ctx.Err()
}
