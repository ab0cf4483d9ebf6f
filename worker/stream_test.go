package worker

import "testing"

func TestEveryShardHasAStreamAndEveryStreamAQueue(t *testing.T) {
	for streams := 1; streams <= 8; streams++ {
		for shards := 1; shards <= 8; shards++ {
			covered := make(map[int]bool)
			for i := range streams {
				queues := streamQueues(i, streams, shards)
				if len(queues) == 0 {
					t.Errorf("stream %d of %d has none of %d queues", i, streams, shards)
				}
				for _, q := range queues {
					if q >= shards || streams <= shards && covered[q] {
						t.Errorf("stream %d of %d, %d queues: got queue %d", i, streams, shards, q)
					}
					covered[q] = true
				}
			}
			if len(covered) != shards {
				t.Errorf("%d streams cover %d of %d queues", streams, len(covered), shards)
			}
		}
	}
}
