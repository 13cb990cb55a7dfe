package dataplane

import "testing"

func TestHistory(t *testing.T) {
	var h history
	h.note("repeated")
	h.note("early") // the last before the moment
	since := h.moment()
	h.note("repeated")
	h.note("late")
	h.note("detached")
	h.forget("detached")
	for id, want := range map[string]bool{"early": false, "repeated": true, "late": true, "detached": false, "of an earlier process": false} {
		if got := h.after(id, since); got != want {
			t.Errorf("%s: later than the moment: %v, want %v", id, got, want)
		}
		if h.after(id, end) {
			t.Errorf("%s: later than the end", id)
		}
	}
}
