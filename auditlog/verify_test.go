package auditlog

import (
	"testing"
)

func TestGoodLogs(t *testing.T) {
	for _, n := range []int{0, 1, 2, 255, 256, 257, 511, 512, 1000, 65536 + 300} {
		s := newSample(t, n)
		o := s.options()
		if err := s.verifyDir(o); err != nil {
			t.Errorf("%d records: %v", n, err)
		}
		if err := s.verifyExport(lines(s.records), Extent{Checkpoint: s.checkpoint(s.records)}, o); err != nil {
			t.Errorf("export of %d records: %v", n, err)
		}
		for _, m := range []int{0, 1, 100, 255, 256, 257, 300, 512, n} {
			if m > n {
				continue
			}
			o.Older = s.checkpoint(s.records[:m])
			if err := s.verifyDir(o); err != nil {
				t.Errorf("%d records, older %d: %v", n, m, err)
			}
			if err := s.verifyExport(lines(s.records), Extent{Checkpoint: s.checkpoint(s.records)}, o); err != nil {
				t.Errorf("export of %d records, older %d: %v", n, m, err)
			}
		}
	}
}
