"""Methods side by side: tables over shots, averages over data sets, and paired differences to TaskRes."""
