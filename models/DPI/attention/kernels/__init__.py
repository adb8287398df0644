"""The fused Triton kernels, each beside what prepares its inputs. Whoever imports one imports Triton."""
