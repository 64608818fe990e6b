package auditlog

import (
	"bytes"
	"context"
	"testing"
)

// benchRecords is enough that the start-up does not show.
const benchRecords = 200_000

func BenchmarkVerifyDir(b *testing.B) {
	s := newSample(b, benchRecords)
	b.SetBytes(int64(len(s.records[0])))
	for b.Loop() {
		if err := s.verifyDir(s.options()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*benchRecords/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkVerifyExport(b *testing.B) {
	s := newSample(b, benchRecords)
	data, e := lines(s.records), Extent{Checkpoint: s.checkpoint(s.records)}
	for b.Loop() {
		if _, err := VerifyExport(context.Background(), bytes.NewReader(data), e, s.options()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*benchRecords/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkScanRecord(b *testing.B) {
	s := newSample(b, 1)
	b.SetBytes(int64(len(s.records[0])))
	for b.Loop() {
		if _, err := scanRecord(s.records[0]); err != nil {
			b.Fatal(err)
		}
	}
}
