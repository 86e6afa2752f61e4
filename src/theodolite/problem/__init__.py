"""What is surveyed: model, criterion and fixed data as one function of the parameters."""
